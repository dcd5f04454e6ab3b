//! The program's first instructions, before its C library starts.
//!
//! What enters a container runs from a read-only mount of its own file, and so is executed twice. A static C library
//! asks the processor what it is at each start, and where that is a virtual machine each question goes to the host:
//! half a millisecond in all. So the second execution is made here, from nothing but the words on the stack.
//!
//! A program uses this by naming `orlop_entry` as its entry to the linker (`build.rs`). Whatever fails here is done again
//! later, by code that can say why; so is all of it on other processors than x86-64.

#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
mod x86_64 {
    use std::arch::{asm, global_asm};
    use std::ffi::c_char;
    use std::mem::MaybeUninit;

    // The stack pointer is all that a new program has. `rdx` belongs to the C library.
    global_asm!(
        ".pushsection .text.orlop_entry, \"ax\", @progbits",
        ".globl orlop_entry",
        ".type orlop_entry, @function",
        "orlop_entry:",
        "xor ebp, ebp",
        "mov rbx, rdx",
        "mov r12, rsp",
        "mov rdi, rsp",
        "and rsp, -16",
        "call {first}",
        "mov rsp, r12",
        "mov rdx, rbx",
        "jmp _start",
        ".size orlop_entry, . - orlop_entry",
        ".popsection",
        first = sym first,
    );

    /// Nothing here may need the C library: no thread-local, no call of `memcpy` and its like (they are chosen when it
    /// starts), and no address that is only known after relocation. Hence words of registers, read one by one.
    ///
    /// # Safety
    /// `stack` is what the kernel gave the program.
    unsafe extern "C" fn first(stack: *const usize) {
        // SAFETY: the kernel puts the number of arguments there, the arguments with a null after them, and the
        // environment with another; all are strings.
        unsafe {
            let count = stack.read_volatile();
            let args = stack.wrapping_add(1).cast::<*const u8>();
            if count < 2 || !is_runtime(args) || !any_enters(args) {
                return;
            }
            seal(args, args.wrapping_add(count + 1));
        }
    }

    /// `runc …` or `orlop runtime …`.
    unsafe fn is_runtime(args: *const *const u8) -> bool {
        // SAFETY: as the caller's; there are two.
        unsafe {
            let called = args.read_volatile();
            let (mut base, mut at) = (called, called);
            while at.read_volatile() != 0 {
                at = at.wrapping_add(1);
                if at.wrapping_sub(1).read_volatile() == b'/' {
                    base = at;
                }
            }
            is(base, "runc\0")
                || is(base, "orlop-runtime\0")
                || is(base, "oci-runtime\0")
                || is(args.wrapping_add(1).read_volatile(), "runtime\0")
        }
    }

    unsafe fn any_enters(args: *const *const u8) -> bool {
        let mut next = args;
        // SAFETY: as the caller's; a null ends them.
        unsafe {
            loop {
                let word = next.read_volatile();
                if word.is_null() {
                    return false;
                }
                if is(word, "create\0")
                    || is(word, "run\0")
                    || is(word, "exec\0")
                    || is(word, "restore\0")
                {
                    return true;
                }
                next = next.wrapping_add(1);
            }
        }
    }

    /// Both end with a zero byte.
    unsafe fn is(word: *const u8, text: &str) -> bool {
        let mut at = 0;
        // SAFETY: neither is read past its end, which stops it.
        unsafe {
            loop {
                let (one, other) = (
                    word.wrapping_add(at).read_volatile(),
                    text.as_ptr().wrapping_add(at).read_volatile(),
                );
                if one != other {
                    return false;
                }
                if one == 0 {
                    return true;
                }
                at += 1;
            }
        }
    }

    /// Executes the program from a read-only mount of it, if it isn't there already.
    unsafe fn seal(args: *const *const u8, env: *const *const u8) {
        let exe = c"/proc/self/exe".as_ptr();
        let empty = c"".as_ptr();
        /// Of struct statfs, in words.
        const FLAGS: usize = 10;
        // It, and struct mount_attr, in words of eight bytes.
        let mut stat = MaybeUninit::<[u64; 15]>::uninit();
        let readonly = [1_u64, 0, 0, 0];
        // SAFETY: each call's arguments are those of its manual page, and outlive it.
        unsafe {
            if call(
                libc::SYS_statfs,
                [address(exe), stat.as_mut_ptr() as usize, 0, 0, 0],
            ) != 0
                || stat
                    .as_ptr()
                    .cast::<u64>()
                    .wrapping_add(FLAGS)
                    .read_volatile()
                    & libc::ST_RDONLY
                    != 0
            {
                return;
            }
            let flags = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as usize;
            let tree = call(
                libc::SYS_open_tree,
                [libc::AT_FDCWD as usize, address(exe), flags, 0, 0],
            );
            if tree < 0 {
                return;
            }
            let tree = tree as usize;
            let at_empty = libc::AT_EMPTY_PATH as usize;
            let size = size_of_val(&readonly);
            let attributes = readonly.as_ptr() as usize;
            if call(
                libc::SYS_mount_setattr,
                [tree, address(empty), at_empty, attributes, size],
            ) == 0
            {
                let (args, env) = (args as usize, env as usize);
                call(
                    libc::SYS_execveat,
                    [tree, address(empty), args, env, at_empty],
                );
            }
            call(libc::SYS_close, [tree, 0, 0, 0, 0]);
        }
    }

    fn address(text: *const c_char) -> usize {
        text as usize
    }

    unsafe fn call(number: i64, args: [usize; 5]) -> isize {
        let [a, b, c, d, e] = args;
        let result;
        // SAFETY: the kernel's calling convention; what the call does is the caller's.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") number as isize => result,
                in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
                lateout("rcx") _, lateout("r11") _,
                options(nostack),
            );
        }
        result
    }
}
