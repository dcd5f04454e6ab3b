//! Memory that the allocator keeps.

/// Gives freed memory back to the kernel. For after a burst: glibc keeps what small allocations had, and a program that
/// held much once would look as if it still did.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
