//! The demo: a small workload, and the proof that each part of the node did its work for it.

mod image;
mod objects;
mod proof;
mod reach;
mod runtime;
mod wait;

pub use image::archive as image_archive;
pub use proof::{apply, prove};
