#![no_main]

use std::sync::LazyLock;
use tempfile::TempDir;

static ROOTFS: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a directory for the root file system"));

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    if let Err(words) = oci_runtime::fuzz::config(text, ROOTFS.path()) {
        assert!(!words.trim().is_empty(), "refused without a word");
    }
});
