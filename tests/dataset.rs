//! Datasets end to end: files in, artifact store, pixels out.

#[path = "dataset/catalogue.rs"]
mod catalogue;
#[path = "dataset/files.rs"]
mod files;
#[path = "dataset/formats.rs"]
mod formats;
#[path = "dataset/pillow.rs"]
mod pillow;
#[path = "dataset/published.rs"]
mod published;
#[path = "dataset/refusals.rs"]
mod refusals;
