#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| cri_shim::image::fuzz::reference(text));
