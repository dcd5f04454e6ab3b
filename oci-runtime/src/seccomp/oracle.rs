//! The compiler against libseccomp: random profiles, random calls, the same verdicts. Needs gcc and libseccomp-dev.

use super::compile::{compile, interpret};
use super::syscalls::{Architecture, X32_BIT, number};
use linux::seccomp::{Instruction, Program};
use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Reads a profile as lines and writes libseccomp's program.
const EXPORTER: &str = r#"
#include <seccomp.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
int main(void) {
    char word[64];
    scmp_filter_ctx ctx = NULL;
    while (scanf("%63s", word) == 1) {
        if (!strcmp(word, "default")) {
            unsigned action; scanf("%u", &action);
            ctx = seccomp_init(action);
            if (!ctx) return 2;
        } else if (!strcmp(word, "arch")) {
            unsigned arch; scanf("%u", &arch);
            int code = seccomp_arch_add(ctx, arch);
            if (code && code != -17) return 3;
        } else if (!strcmp(word, "rule")) {
            unsigned action, count; char name[64];
            scanf("%u %63s %u", &action, name, &count);
            struct scmp_arg_cmp args[6];
            for (unsigned i = 0; i < count; i++) {
                unsigned arg, op; unsigned long long a, b;
                scanf("%u %u %llu %llu", &arg, &op, &a, &b);
                args[i].arg = arg; args[i].op = op; args[i].datum_a = a; args[i].datum_b = b;
            }
            int nr = seccomp_syscall_resolve_name(name);
            if (nr == __NR_SCMP_ERROR) { fprintf(stderr, "unknown %s\n", name); return 4; }
            int code = seccomp_rule_add_array(ctx, action, nr, count, args);
            if (code) { fprintf(stderr, "%s: %s\n", name, strerror(-code)); return 5; }
        }
    }
    return seccomp_export_bpf(ctx, 1) ? 6 : 0;
}
"#;

/// Names that libseccomp 2.5 knows, and that no architecture here multiplexes.
const NAMES: [&str; 16] = [
    "read",
    "write",
    "openat",
    "close",
    "mmap",
    "mprotect",
    "clone",
    "execve",
    "personality",
    "ioctl",
    "prctl",
    "getpid",
    "unshare",
    "mount",
    "setns",
    "openat2",
];

const OPERATORS: [&str; 7] = [
    "SCMP_CMP_NE",
    "SCMP_CMP_LT",
    "SCMP_CMP_LE",
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_MASKED_EQ",
];

/// A small generator, so that a failure's seed can be run again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }

    /// Numbers that are near one another, in either half.
    fn value(&mut self) -> u64 {
        let small = |random: &mut Self| random.below(4) as u64;
        match self.below(4) {
            0 => small(self),
            1 => small(self) << 32 | small(self),
            2 => 0xffff_ffff - small(self),
            _ => (self.next() >> 8) & 0x3_0000_000f,
        }
    }
}

fn random_profile(random: &mut Random) -> Value {
    let choice = random.below(3);
    let architectures = [
        json!(["SCMP_ARCH_X86_64"]),
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]),
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
    ][choice]
        .clone();
    // Where 32 bits are compared, libseccomp makes nothing consistent of a value with more.
    let narrow = choice > 0;
    let actions = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRAP",
    ];
    let default = actions[random.below(actions.len())];
    let mut rules = Vec::new();
    for name in NAMES {
        // One action a name: with several, libseccomp's order is its own.
        let action = actions[random.below(actions.len())];
        if action == default {
            continue;
        }
        // And one rule a name: of several, libseccomp 2.5.4 makes trees that give other names' verdicts.
        for _ in 0..random.below(2) {
            let first = random.below(6);
            let conditions: Vec<Value> = (0..random.below(3))
                .map(|position| {
                    let operator = OPERATORS[random.below(OPERATORS.len())];
                    let mask = if narrow { 0xffff_ffff } else { u64::MAX };
                    let (value, masked) = (random.value() & mask, random.value() & mask);
                    json!({"index": (first + position) % 6, "op": operator, "value": value, "valueTwo": masked})
                })
                .collect();
            rules.push(
                json!({"names": [name], "action": action, "errnoRet": 13, "args": conditions}),
            );
        }
    }
    json!({"defaultAction": default, "defaultErrnoRet": 7, "architectures": architectures, "syscalls": rules})
}

fn lines(profile: &LinuxSeccomp) -> String {
    let mut out = format!(
        "default {}\n",
        profile.default_action().as_u32(profile.default_errno_ret())
    );
    for arch in profile.architectures().iter().flatten() {
        out.push_str(&format!("arch {}\n", *arch as u32));
    }
    for rule in profile.syscalls().iter().flatten() {
        let arguments = rule.args().as_deref().unwrap_or_default();
        let action = rule.action().as_u32(rule.errno_ret());
        out.push_str(&format!(
            "rule {action} {} {}",
            rule.names()[0],
            arguments.len()
        ));
        for argument in arguments {
            out.push_str(&format!(
                " {} {} {} {}",
                argument.index(),
                argument.op() as u32,
                argument.value(),
                argument.value_two().unwrap_or(0)
            ));
        }
        out.push('\n');
    }
    out
}

fn oracle(exporter: &Path, profile: &LinuxSeccomp) -> Program {
    let mut child = Command::new(exporter)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines(profile).as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "libseccomp takes the profile: {}",
        lines(profile)
    );
    let instruction = |bytes: &[u8]| Instruction {
        code: u16::from_le_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    };
    Program(output.stdout.chunks_exact(8).map(instruction).collect())
}

fn random_call(random: &mut Random) -> interpret::Call {
    let architectures = [Architecture::X86_64, Architecture::X86, Architecture::X32];
    let architecture = architectures[random.below(3)];
    let known = number(NAMES[random.below(NAMES.len())], architecture);
    let near = known
        .filter(|_| random.below(8) > 0)
        .unwrap_or_else(|| random.below(600) as u32);
    let bit = if architecture == Architecture::X32 {
        X32_BIT
    } else {
        0
    };
    // A 32-bit caller's arguments have no upper half.
    let mask = if architecture.wide() {
        u64::MAX
    } else {
        0xffff_ffff
    };
    interpret::Call {
        number: near | bit,
        audit: if random.below(20) == 0 {
            0xc000_00b7
        } else {
            architecture.audit()
        },
        arguments: std::array::from_fn(|_| random.value() & mask),
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn verdicts_are_libseccomps() {
    let dir = tempfile::tempdir().unwrap();
    let (source, exporter) = (dir.path().join("export.c"), dir.path().join("export"));
    std::fs::write(&source, EXPORTER).unwrap();
    let built = Command::new("gcc")
        .arg(&source)
        .arg("-o")
        .arg(&exporter)
        .arg("-lseccomp")
        .status();
    assert!(
        built.expect("gcc is installed").success(),
        "libseccomp-dev is installed"
    );
    for seed in 1..=200 {
        let mut random = Random(seed);
        let profile: LinuxSeccomp = serde_json::from_value(random_profile(&mut random)).unwrap();
        let mut filter = super::read(&profile).unwrap();
        filter.unknown = None; // libseccomp has no such rule
        let ours = compile(&filter).unwrap();
        let theirs = oracle(&exporter, &profile);
        for _ in 0..400 {
            let call = random_call(&mut random);
            let (verdict, expected) = (
                interpret::run(&ours, &call).0,
                interpret::run(&theirs, &call).0,
            );
            assert_eq!(
                verdict,
                expected,
                "seed {seed}, {call:x?}, profile:\n{}",
                lines(&profile)
            );
        }
    }
}
