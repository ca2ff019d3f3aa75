//! Gives memory back that the allocator holds but nobody uses. One call of the C library, which has no safe form.

/// Has the allocator give free memory back to the kernel. Takes milliseconds, and allocations elsewhere wait for it: only
/// now and then, or for when memory is short.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "the C library's own function, which nobody wraps"
)]
pub fn trim() {
    // SAFETY: it takes a number, holds the allocator's own locks, and may be called from any thread at any time.
    unsafe {
        nix::libc::malloc_trim(0);
    }
}

/// Other C libraries give memory back by themselves.
#[cfg(not(target_env = "gnu"))]
pub fn trim() {}
