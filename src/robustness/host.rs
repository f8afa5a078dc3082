//! Tensors on the CPU as plain numbers: of an image's few thousand, libtorch's dozens of calls cost more than the arithmetic, and
//! as much as a small model's own pass. What is computed here a row at a time stands as a tensor formula, too, for GPUs, and a test
//! holds both to each other.

use std::marker::PhantomData;

use tch::kind::Element;
use tch::{Device, Tensor};

/// Whether a tensor's numbers are in this process's memory.
pub fn is_here(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu
}

/// A tensor's numbers in order.
#[derive(Debug)]
pub struct Numbers<T> {
    tensor: Tensor,
    kind: PhantomData<T>,
}

impl<T: Element> Numbers<T> {
    /// The tensor's own where they lie in order, else a copy. On the CPU, of kind `T`.
    pub fn of(tensor: &Tensor) -> Self {
        assert!(is_here(tensor) && tensor.kind() == T::KIND, "numbers of another device or kind");
        Self { tensor: tensor.contiguous(), kind: PhantomData }
    }

    pub fn read(&self) -> &[T] {
        // SAFETY: contiguous numbers of type T, which live as long as the tensor; nobody writes to a search's tensors
        // while a formula reads them.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), self.tensor.numel()) }
    }
}

/// A new tensor of this shape, written by `fill`, which sees zeros.
pub fn filled<T: Element>(shape: &[i64], fill: impl FnOnce(&mut [T])) -> Tensor {
    let tensor = Tensor::zeros(shape, (T::KIND, Device::Cpu));
    // SAFETY: contiguous numbers of type T, which nobody else knows of yet.
    fill(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) });
    tensor
}
