//! Loading seccomp filters (seccomp(2)).

use crate::error::{Context, Result, check};
use serde::{Deserialize, Serialize};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// One instruction of classic BPF, as the kernel's `struct sock_filter` lays it out.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How far to jump if true.
    pub jt: u8,
    /// How far to jump if false.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl From<Instruction> for u64 {
    fn from(instruction: Instruction) -> u64 {
        u64::from(instruction.code) << 48
            | u64::from(instruction.jt) << 40
            | u64::from(instruction.jf) << 32
            | u64::from(instruction.k)
    }
}

impl From<u64> for Instruction {
    fn from(word: u64) -> Instruction {
        Instruction {
            code: (word >> 48) as u16,
            jt: (word >> 40) as u8,
            jf: (word >> 32) as u8,
            k: word as u32,
        }
    }
}

/// A program, which serializes as a list of numbers, one an instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Program(pub Vec<Instruction>);

impl From<Vec<u64>> for Program {
    fn from(words: Vec<u64>) -> Program {
        Program(words.into_iter().map(Instruction::from).collect())
    }
}

impl From<Program> for Vec<u64> {
    fn from(program: Program) -> Vec<u64> {
        program.0.into_iter().map(u64::from).collect()
    }
}

/// `SECCOMP_FILTER_FLAG_*` bits.
pub mod flag {
    /// Apply to all threads.
    pub const TSYNC: u32 = 1;
    /// Log all actions but allow.
    pub const LOG: u32 = 1 << 1;
    /// Leave speculation mitigations off.
    pub const SPEC_ALLOW: u32 = 1 << 2;
    /// Hand out a descriptor for `USER_NOTIF`.
    pub const NEW_LISTENER: u32 = 1 << 3;
    /// Only fatal signals interrupt a call that waits for its listener.
    pub const WAIT_KILLABLE_RECV: u32 = 1 << 5;
}

/// Loads a filter for this thread and all that it starts. With [`flag::NEW_LISTENER`], returns the listener.
///
/// # Errors
/// EACCES without no_new_privs and without CAP_SYS_ADMIN; EINVAL for a program that the kernel rejects or a flag that
/// it doesn't know.
pub fn load(program: &Program, flags: u32) -> Result<Option<OwnedFd>> {
    #[repr(C)]
    struct SockFprog {
        len: u16,
        filter: *const Instruction,
    }
    let len = u16::try_from(program.0.len()).map_err(|_| {
        crate::Error::new(
            "load seccomp filter",
            "of too many instructions",
            libc::EINVAL,
        )
    })?;
    let prog = SockFprog {
        len,
        filter: program.0.as_ptr(),
    };
    // SAFETY: `prog` is a struct sock_fprog whose pointer and length describe a live slice of instructions with the
    // layout of struct sock_filter (repr(C)); the kernel copies it during the call.
    let value = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&prog),
        )
    })
    .context("seccomp", || {
        format!("{len} instructions, flags {flags:#x}")
    })?;
    if flags & flag::NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER a successful call returns a new descriptor that nothing else owns.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(value as RawFd) }))
}

/// Which of the actions the kernel has, by `SECCOMP_RET_*` value.
pub fn action_available(action: u32) -> bool {
    // SAFETY: the pointer is to a live u32, as SECCOMP_GET_ACTION_AVAIL asks for.
    let value = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            std::ptr::from_ref(&action),
        )
    };
    value == 0
}
