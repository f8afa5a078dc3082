//! TorchScript archives written by hand, as a stranger could.

use std::io::Write;
use std::path::Path;

use zip::CompressionMethod;
use zip::write::SimpleFileOptions;

/// A pickled `Net` object: its class, no attributes but `training`, and, for a class with `__setstate__`, the state 7.
fn object(with_state: bool) -> Vec<u8> {
    let mut pickle = b"\x80\x02c__torch__\nNet\n)\x81".to_vec();
    if with_state {
        pickle.extend(b"K\x07b.");
    } else {
        pickle.extend(b"}(X\x08\x00\x00\x00training\x89ub.");
    }
    pickle
}

/// Writes a model whose `forward(x)` runs `body` (lines of TorchScript) and answers with ten logits per image, or whatever
/// `body` returns before.
pub fn write_model(path: &Path, body: &str) {
    write(path, body, None);
}

/// The same for code that runs while the model is being loaded.
pub fn write_model_that_loads_with(path: &Path, body: &str) {
    write(path, "", Some(body));
}

fn write(path: &Path, forward: &str, load: Option<&str>) {
    let indent = |body: &str| body.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let setstate = load.map_or(String::new(), |body| {
        format!(
            "  def __getstate__(self: __torch__.Net) -> int:\n    return 7\n  \
             def __setstate__(self: __torch__.Net, state: int) -> NoneType:\n{}    self.training = False\n    return None\n",
            indent(body)
        )
    });
    let code = format!(
        "class Net(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n{setstate}  \
         def forward(self: __torch__.Net, x: Tensor) -> Tensor:\n{}    return {LOGITS}\n",
        indent(forward)
    );
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let pickle = object(load.is_some());
    for (name, bytes) in [
        ("net/data.pkl", pickle.as_slice()),
        ("net/code/__torch__.py", code.as_bytes()),
        ("net/constants.pkl", b"\x80\x02)."),
        ("net/version", b"3\n"),
    ] {
        archive.start_file(name, stored).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

/// Ten logits per image that depend on it.
const LOGITS: &str = "torch.slice(torch.flatten(x, 1), 1, 0, 10)";
