//! Settings: defaults, then `gauntlet.toml`, then `GAUNTLET_*` variables, then flags.
