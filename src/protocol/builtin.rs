//! The protocols that ship with the binary.

use super::file::Protocol;

const DOCUMENTS: [&str; 17] = [
    include_str!("builtin/clean.toml"),
    include_str!("builtin/pgd-linf.toml"),
    include_str!("builtin/pgd-l2.toml"),
    include_str!("builtin/pgd-l1.toml"),
    include_str!("builtin/pgd-grid.toml"),
    include_str!("builtin/autoattack-standard.toml"),
    include_str!("builtin/autoattack-plus.toml"),
    include_str!("builtin/autoattack-rand.toml"),
    include_str!("builtin/fast.toml"),
    include_str!("builtin/imagenet-c.toml"),
    include_str!("builtin/imagenet-c-extra.toml"),
    include_str!("builtin/cifar10-c.toml"),
    include_str!("builtin/vonenet-corruption.toml"),
    include_str!("builtin/min-norm.toml"),
    include_str!("builtin/decision-curve.toml"),
    include_str!("builtin/vonenet-2020.toml"),
    include_str!("builtin/it-align-pgd.toml"),
];

/// Every built-in protocol, in the order users should meet them.
pub fn builtins() -> Vec<Protocol> {
    DOCUMENTS.iter().map(|text| Protocol::from_toml(text, &[]).expect("built-in protocols are valid")).collect()
}

/// The built-in protocol of this name.
pub fn builtin(name: &str) -> Option<Protocol> {
    builtins().into_iter().find(|protocol| protocol.name == name)
}
