#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cri_shim::image::fuzz::compressed(bytes));
