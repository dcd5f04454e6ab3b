#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // In memory: thousands a second are made and removed.
    if let Ok(root) = tempfile::tempdir_in("/dev/shm") {
        cri_shim::image::fuzz::layer(bytes, root.path());
    }
});
