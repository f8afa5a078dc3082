// What the Rust binding of libtorch does not expose, behind a C interface.
//
// Only torch_cpu and c10 are linked: every switch lives in at::Context or in a device-neutral interface, so one binary
// serves both kinds of libtorch. Nothing throws across the boundary: a function that can fail returns the reason, in
// storage that lasts until this thread's next call, or null.

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <dlfcn.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/passes/tensorexpr_fuser.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/headeronly/version.h>

#include <exception>
#include <memory>
#include <sstream>
#include <string>

namespace {

thread_local std::string text;

const char* keep(std::string value) {
  text = std::move(value);
  return text.c_str();
}

template <typename Body>
const char* guarded(Body body) {
  try {
    return body();
  } catch (const std::exception& error) {
    return keep(error.what());
  } catch (...) {
    return keep("an unknown C++ exception");
  }
}

// Tensors that stand in the program itself, as freezing and tracing leave them.
void widen_constants(torch::jit::Block* block) {
  namespace attr = c10::attr;
  for (auto* node : block->nodes()) {
    bool holds_tensor = node->kind() == c10::prim::Constant && node->hasAttribute(attr::value) &&
        node->kindOf(attr::value) == torch::jit::AttributeKind::t;
    if (holds_tensor && node->t(attr::value).is_floating_point()) {
      node->t_(attr::value, node->t(attr::value).to(at::kDouble));
      node->output()->setType(c10::TensorType::get());
    }
    for (auto* inner : node->blocks()) widen_constants(inner);
  }
}

} // namespace

extern "C" {

// Float32 means float32: no TF32 or bfloat16 inside cuBLAS, cuDNN or oneDNN. Null once reading back confirms it.
const char* gauntlet_require_true_float32() {
  return guarded([]() -> const char* {
    using at::Float32Backend;
    using at::Float32Op;
    using at::Float32Precision;
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(false);
    context.setAllowTF32CuDNN(false);
    for (auto op : {Float32Op::CONV, Float32Op::RNN, Float32Op::MATMUL}) {
      context.setFloat32Precision(Float32Backend::MKLDNN, op, Float32Precision::IEEE);
    }
    if (context.allowTF32CuBLAS()) return keep("TF32 stays on in cuBLAS");
    if (context.allowTF32CuDNN()) return keep("TF32 stays on in cuDNN");
    for (auto op : {Float32Op::CONV, Float32Op::RNN, Float32Op::MATMUL}) {
      for (auto backend : {Float32Backend::CUDA, Float32Backend::MKLDNN}) {
        auto precision = context.float32Precision(backend, op);
        if (precision == Float32Precision::TF32 || precision == Float32Precision::BF16) {
          return keep("reduced float32 precision stays on: " + at::precision2str(precision));
        }
      }
    }
    return nullptr;
  });
}

// Arithmetic of this thread's passes: 0 true float32, 1 TF32 in cuBLAS and cuDNN, 2 bfloat16 by autocast, on CPU and GPU.
const char* gauntlet_set_precision(int precision) {
  return guarded([precision]() -> const char* {
    auto& context = at::globalContext();
    context.setAllowTF32CuBLAS(precision == 1);
    context.setAllowTF32CuDNN(precision == 1);
    for (auto device : {at::kCPU, at::kCUDA}) {
      if (precision == 2) at::autocast::set_autocast_dtype(device, at::kBFloat16);
      at::autocast::set_autocast_enabled(device, precision == 2);
    }
    at::autocast::clear_cache();
    return nullptr;
  });
}

// Deterministic kernels where there is a choice. An operator with no deterministic form warns instead of failing:
// turning away honest models would be worse, and repeatability is measured by the probe.
const char* gauntlet_require_determinism() {
  return guarded([]() -> const char* {
    auto& context = at::globalContext();
    context.setBenchmarkCuDNN(false);
    context.setDeterministicCuDNN(true);
    context.setDeterministicMkldnn(true);
    context.setDeterministicAlgorithms(true, /*warn_only=*/true);
    context.setDeterministicFillUninitializedMemory(false);
    bool done = !context.benchmarkCuDNN() && context.deterministicCuDNN() && context.deterministicAlgorithms();
    return done ? nullptr : keep("libtorch keeps its nondeterministic kernels");
  });
}

// TorchScript interprets the graph as it is written. The profiling executor and the fusers would recompile it after
// the first calls, so that equal inputs could give different bits early and late in one run.
const char* gauntlet_fix_torchscript_executor() {
  return guarded([]() -> const char* {
    torch::jit::getProfilingMode() = false;
    torch::jit::setTensorExprFuserEnabled(false);
    bool done = !torch::jit::getProfilingMode() && !torch::jit::tensorExprFuserEnabled();
    return done ? nullptr : keep("TorchScript keeps its profiling executor");
  });
}

// A TorchScript archive with every floating-point parameter, buffer and constant in float64, in evaluation mode, frozen; `device` is -1 for the
// CPU. On success `module` is to be freed by gauntlet_free_wide.
const char* gauntlet_load_wide(const char* bytes, size_t length, int device, void** module) {
  return guarded([=]() -> const char* {
    std::istringstream archive(std::string(bytes, length));
    auto place = device < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    auto loaded = std::make_unique<torch::jit::Module>(torch::jit::load(archive, place));
    loaded->eval();
    auto widen = [](at::Tensor tensor) {
      if (!tensor.is_floating_point()) return;
      tensor.requires_grad_(false);
      tensor.set_data(tensor.to(at::kDouble));
    };
    for (auto tensor : loaded->parameters()) widen(tensor);
    for (auto tensor : loaded->buffers()) widen(tensor);
    for (const auto& part : loaded->modules()) {
      for (const auto& method : part.get_methods()) widen_constants(method.graph()->block());
    }
    *module = loaded.release();
    return nullptr;
  });
}

// The module's output for `images`; `output` is the caller's.
const char* gauntlet_forward_wide(void* module, const at::Tensor* images, at::Tensor** output) {
  return guarded([=]() -> const char* {
    *output = new at::Tensor(static_cast<torch::jit::Module*>(module)->forward({*images}).toTensor());
    return nullptr;
  });
}

void gauntlet_free_wide(void* module) {
  delete static_cast<torch::jit::Module*>(module);
}

// Hands cached CUDA memory back to the driver. Without CUDA there is nothing to do.
const char* gauntlet_release_cache() {
  return guarded([]() -> const char* {
    if (at::globalContext().hasCUDA()) {
      auto* allocator = c10::getDeviceAllocator(at::kCUDA);
      if (allocator->initialized()) allocator->emptyCache();
    }
    return nullptr;
  });
}

const char* gauntlet_libtorch_version() {
  return TORCH_VERSION;
}

// Widest vector instructions that libtorch's CPU kernels use here, e.g. AVX512.
const char* gauntlet_cpu_capability() {
  return guarded([] { return keep(at::get_cpu_capability()); });
}

// The file that provides libtorch's CPU kernels, or null.
const char* gauntlet_libtorch_file() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&at::get_cpu_capability), &info) == 0) return nullptr;
  return keep(info.dli_fname);
}

} // extern "C"
