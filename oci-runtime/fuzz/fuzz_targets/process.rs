#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    if let Err(words) = oci_runtime::fuzz::process(text) {
        assert!(!words.trim().is_empty(), "refused without a word");
    }
});
