//! Which devices a cgroup's processes may use: an eBPF program on its v2 directory, or v1's `devices` controller.

use super::Cgroup;
use crate::error::{Context, Error, Result, check};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

/// The kinds of device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Either kind.
    All,
    /// Block devices.
    Block,
    /// Character devices.
    Char,
}

/// One rule. Of the rules that match an access, the last one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Allows or denies.
    pub allow: bool,
    /// Which kind it is about.
    pub kind: DeviceKind,
    /// Any with `None`.
    pub major: Option<u32>,
    /// Any with `None`.
    pub minor: Option<u32>,
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Making a node.
    pub mknod: bool,
}

impl DeviceRule {
    /// The rule about every access to every device.
    pub fn everything(allow: bool) -> Self {
        DeviceRule {
            allow,
            kind: DeviceKind::All,
            major: None,
            minor: None,
            read: true,
            write: true,
            mknod: true,
        }
    }

    /// A rule that allows all access to one character device; any minor number with `None`.
    pub fn allow_char(major: u32, minor: Option<u32>) -> Self {
        DeviceRule {
            kind: DeviceKind::Char,
            major: Some(major),
            minor,
            ..DeviceRule::everything(true)
        }
    }

    /// Whether no access is left for the rules before this one.
    fn is_total(&self) -> bool {
        *self == DeviceRule::everything(self.allow)
    }

    fn access_bits(&self) -> i32 {
        // BPF_DEVCG_ACC_MKNOD, _READ and _WRITE.
        i32::from(self.mknod) | i32::from(self.read) << 1 | i32::from(self.write) << 2
    }

    fn access_text(&self) -> String {
        [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, c)| c)
            .collect()
    }

    fn v1_text(&self) -> String {
        let number = |number: Option<u32>| {
            number.map_or_else(|| "*".to_owned(), |number| number.to_string())
        };
        let kind = match self.kind {
            DeviceKind::All => 'a',
            DeviceKind::Block => 'b',
            DeviceKind::Char => 'c',
        };
        format!(
            "{kind} {}:{} {}",
            number(self.major),
            number(self.minor),
            self.access_text()
        )
    }
}

impl Cgroup {
    /// Puts the rules in force, in place of those that were; what no rule matches is denied.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN or CAP_BPF; EOPNOTSUPP on a host with neither mechanism.
    pub fn set_devices(&self, rules: &[DeviceRule]) -> Result<()> {
        let v1 = self.v1_dir("devices");
        let plain = plain_v1(rules);
        if let Some(dir) = self.unified_dir() {
            let cgroup = rustix::fs::open(
                &dir,
                rustix::fs::OFlags::RDONLY
                    | rustix::fs::OFlags::DIRECTORY
                    | rustix::fs::OFlags::CLOEXEC,
                rustix::fs::Mode::empty(),
            )
            .context("open", || dir.display().to_string())?;
            // Where both could, the controller is a quarter of the work; a program that is there already counts too.
            let by_controller = v1.is_some()
                && plain.is_some()
                && attached(cgroup.as_fd()).is_ok_and(|ids| ids.is_empty());
            if !by_controller {
                match replace_program(cgroup.as_fd(), rules) {
                    // A kernel without cgroup programs; a v1 controller may be there.
                    Err(error) if error.is(libc::EINVAL) || error.is(libc::ENOSYS) => {}
                    other => return other,
                }
            }
        }
        let dir = v1.ok_or_else(|| {
            Error::new(
                "limit devices (no eBPF, no controller)",
                self.path(),
                libc::EOPNOTSUPP,
            )
        })?;
        let plain = plain.ok_or_else(|| {
            Error::new(
                "limit devices (a rule that takes back a part of what one before it allows needs eBPF)",
                self.path(),
                libc::EOPNOTSUPP,
            )
        })?;
        set_v1_devices(&dir, &plain)
    }
}

/// The rules in the controller's terms: those after the last one about everything, all of which allow. `None` for
/// others: the controller forgets only what was allowed in the same words, so a denied part would stay allowed.
fn plain_v1(rules: &[DeviceRule]) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    let start = rules.iter().rposition(DeviceRule::is_total).unwrap_or(0);
    for rule in rules.iter().skip(start) {
        match (rule.is_total(), rule.allow) {
            (true, allow) => lines.extend(allow.then(|| "a".to_owned())),
            (false, true) => lines.push(rule.v1_text()),
            (false, false) => return None,
        }
    }
    Some(lines)
}

fn set_v1_devices(dir: &Path, allowed: &[String]) -> Result<()> {
    super::write_file(&dir.join("devices.deny"), "a")?;
    let path = dir.join("devices.allow");
    let file = super::open_for_write(&path)?;
    for line in allowed {
        match rustix::io::write(&file, line.as_bytes()) {
            // The cgroup above doesn't allow it, and so it is.
            Ok(_) | Err(rustix::io::Errno::PERM) => {}
            Err(errno) => {
                let what = format!("{}={line}", path.display());
                return Err(Error::new("write", what, errno.raw_os_error()));
            }
        }
    }
    Ok(())
}

/// An eBPF instruction, as the kernel's `struct bpf_insn` lays it out.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Insn {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

fn insn(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Insn {
    Insn {
        code,
        registers: dst | src << 4,
        offset,
        immediate,
    }
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_UNEQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_UNEQUAL_REGISTER: u8 = 0x5d; // BPF_JMP | BPF_JNE | BPF_X
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

/// The program: of struct bpf_cgroup_dev_ctx, register 2 gets the kind, 3 the access, 4 and 5 the numbers; then the
/// rules are tried from the last to the first.
fn program(rules: &[DeviceRule]) -> Vec<Insn> {
    let mut code = vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(AND, 2, 0, 0, 0xffff),
        insn(LOAD_WORD, 3, 1, 0, 0),
        insn(SHIFT_RIGHT, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        if rule.access_bits() == 0 {
            continue;
        }
        let mut tests = Vec::new();
        match rule.kind {
            DeviceKind::All => {}
            DeviceKind::Block => tests.push(insn(JUMP_UNEQUAL, 2, 0, 0, 1)),
            DeviceKind::Char => tests.push(insn(JUMP_UNEQUAL, 2, 0, 0, 2)),
        }
        if rule.access_bits() != 7 {
            tests.push(insn(MOVE_REGISTER, 1, 3, 0, 0));
            tests.push(insn(AND, 1, 0, 0, rule.access_bits()));
            // An allowance must cover all that is asked for; a denial any of it.
            tests.push(match rule.allow {
                true => insn(JUMP_UNEQUAL_REGISTER, 1, 3, 0, 0),
                false => insn(JUMP_EQUAL, 1, 0, 0, 0),
            });
        }
        if let Some(major) = rule.major {
            tests.push(insn(JUMP_UNEQUAL, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            tests.push(insn(JUMP_UNEQUAL, 5, 0, 0, minor as i32));
        }
        // Each jump goes past this rule, whose verdict is two instructions.
        let count = tests.len();
        for (position, test) in tests.iter_mut().enumerate() {
            if test.code & 0x07 == 0x05 {
                test.offset = (count - position - 1 + 2) as i16;
            }
        }
        code.extend(tests);
        code.push(insn(MOVE, 0, 0, 0, i32::from(rule.allow)));
        code.push(insn(EXIT, 0, 0, 0, 0));
        // The verifier refuses what can't be reached.
        if count == 0 {
            return code;
        }
    }
    code.push(insn(MOVE, 0, 0, 0, 0));
    code.push(insn(EXIT, 0, 0, 0, 0));
    code
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// A prefix of `union bpf_attr` for each command; the kernel takes what is beyond as zero.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
}

#[repr(C)]
#[derive(Default)]
struct GetFdAttr {
    prog_id: u32,
    next_id: u32,
    open_flags: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T, what: &'static str) -> Result<RawFd> {
    // SAFETY: `attr` is a prefix of union bpf_attr for this command (each caller's type), of the size that is passed;
    // the pointers in it are to buffers that the caller keeps alive through the call, with their true lengths.
    let value = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    check(value).map(|fd| fd as RawFd).context("bpf", || what)
}

fn replace_program(cgroup: BorrowedFd<'_>, rules: &[DeviceRule]) -> Result<()> {
    let before = attached(cgroup)?;
    // The new one first: both are asked while both are there, and nothing is allowed in between.
    let total = rules
        .last()
        .is_some_and(|rule| rule.allow && rule.is_total());
    if !total {
        let code = program(rules);
        let mut load = LoadAttr {
            prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
            insn_cnt: code.len() as u32,
            insns: code.as_ptr() as u64,
            license: c"Apache-2.0".as_ptr() as u64,
            prog_name: *b"orlop_devices\0\0\0",
            ..LoadAttr::default()
        };
        let fd = bpf(BPF_PROG_LOAD, &mut load, "load device program")?;
        // SAFETY: BPF_PROG_LOAD returned a new descriptor that nothing else owns.
        let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut attach = AttachAttr {
            target_fd: cgroup.as_raw_fd() as u32,
            attach_bpf_fd: loaded.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_DEVICE,
            attach_flags: BPF_F_ALLOW_MULTI,
        };
        bpf(BPF_PROG_ATTACH, &mut attach, "attach device program")?;
    }
    before.iter().try_for_each(|id| detach(cgroup, *id))
}

/// The ids of the device programs on a cgroup itself.
fn attached(cgroup: BorrowedFd<'_>) -> Result<Vec<u32>> {
    let mut ids = vec![0u32; 64];
    let mut query = QueryAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..QueryAttr::default()
    };
    bpf(BPF_PROG_QUERY, &mut query, "query device programs")?;
    ids.truncate(query.prog_cnt as usize);
    Ok(ids)
}

fn detach(cgroup: BorrowedFd<'_>, id: u32) -> Result<()> {
    let mut get = GetFdAttr {
        prog_id: id,
        ..GetFdAttr::default()
    };
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut get, "open device program")?;
    // SAFETY: BPF_PROG_GET_FD_BY_ID returned a new descriptor that nothing else owns.
    let old = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut detach = AttachAttr {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: old.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: 0,
    };
    bpf(BPF_PROG_DETACH, &mut detach, "detach device program").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_follows_a_rule_about_everything() {
        let code = program(&[
            DeviceRule::allow_char(1, Some(3)),
            DeviceRule::everything(false),
        ]);
        assert_eq!(code.len(), 8);
        assert_eq!(code[6], insn(MOVE, 0, 0, 0, 0));
    }

    #[test]
    fn the_controller_is_given_only_what_it_can_hold() {
        let null = DeviceRule::allow_char(1, Some(3));
        let nothing = DeviceRule::everything(false);
        assert_eq!(
            plain_v1(&[null, nothing, null]),
            Some(vec!["c 1:3 rwm".to_owned()])
        );
        assert_eq!(
            plain_v1(&[nothing, null, DeviceRule::everything(true)]),
            Some(vec!["a".to_owned()])
        );
        let all_of_memory = DeviceRule::allow_char(1, None);
        let but_one = DeviceRule {
            allow: false,
            ..null
        };
        assert_eq!(plain_v1(&[nothing, all_of_memory, but_one]), None);
        assert_eq!(
            plain_v1(&[all_of_memory, but_one, nothing]),
            Some(Vec::new())
        );
    }

    #[test]
    fn v1_text_is_the_controllers() {
        assert_eq!(DeviceRule::allow_char(136, None).v1_text(), "c 136:* rwm");
        let read_only = DeviceRule {
            write: false,
            mknod: false,
            ..DeviceRule::allow_char(1, Some(3))
        };
        assert_eq!(read_only.v1_text(), "c 1:3 r");
    }
}
