//! `run` of `true` in new pid, mount, uts, ipc, network and cgroup namespaces, against crun and runc.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::json;

use super::{Row, median};
use crate::workspace::{run as run_program, target};

/// How often, and under what circumstances, `true` is launched.
struct Case {
    name: &'static str,
    seccomp: bool,
    /// Limits on memory, processors and processes.
    limits: bool,
    /// Between launches: an idle host's RCU makes what waits for it slower.
    pause_ms: u32,
    /// Other mounts in the namespace that is launched from.
    mounts: u32,
    rounds: usize,
    launches: u32,
}

const PLAIN: Case = Case {
    name: "launch of `true`, without seccomp",
    seccomp: false,
    limits: false,
    pause_ms: 0,
    mounts: 0,
    rounds: 7,
    launches: 20,
};

const CASES: [Case; 5] = [
    PLAIN,
    Case {
        name: "the same, with a seccomp profile of 300 calls",
        seccomp: true,
        ..PLAIN
    },
    Case {
        name: "without seccomp, with limits",
        limits: true,
        rounds: 3,
        ..PLAIN
    },
    Case {
        name: "the same, 150 ms between launches",
        limits: true,
        pause_ms: 150,
        rounds: 3,
        launches: 10,
        ..PLAIN
    },
    Case {
        name: "without seccomp, with 1,000 mounts on the host",
        mounts: 1000,
        rounds: 3,
        ..PLAIN
    },
];

/// What a launch took of one program.
struct Cost {
    wall_ms: f64,
    cpu_ms: f64,
}

/// Prints the rows: time on the clock and of the processors for each case, then the largest memory of one launch.
pub fn run(program: &Path) -> anyhow::Result<()> {
    let folder = target()
        .join("bench")
        .join(format!("oci-{}", std::process::id()));
    let tools = [
        ("orlop", format!("{} runtime", program.display())),
        ("crun", "crun".to_owned()),
        ("runc", "runc".to_owned()),
        ("youki", "youki".to_owned()),
    ];
    for case in &CASES {
        bundle(&folder, case)?;
        let mut costs: Vec<Result<Vec<Cost>, String>> = tools
            .iter()
            .map(|(_, command)| installed(command).map(|()| Vec::new()))
            .collect();
        for _ in 0..case.rounds {
            for ((name, command), costs) in tools.iter().zip(&mut costs) {
                // What failed once is not tried again.
                let Ok(list) = costs else { continue };
                match launches(name, command, &folder, case) {
                    Ok(cost) => list.push(cost),
                    Err(error) => *costs = Err(first_lines(&error)),
                }
            }
        }
        print(case.name, "ms", &tools, &costs, |cost| cost.wall_ms);
        print("  of the processors", "ms", &tools, &costs, |cost| {
            cost.cpu_ms
        });
    }
    for seccomp in [false, true] {
        bundle(&folder, &Case { seccomp, ..PLAIN })?;
        let peaks = tools.iter().map(|(name, command)| {
            installed(command)?;
            peak_kib(name, command, &folder).map_err(|error| first_lines(&error))
        });
        let peaks: Vec<_> = peaks.map(|peak| peak.map(|peak| vec![peak])).collect();
        let with = if seccomp { "with" } else { "without" };
        print(
            &format!("largest memory (RSS) of a launch, {with} seccomp"),
            "KiB",
            &tools,
            &peaks,
            |peak| *peak,
        );
    }
    for seccomp in [false, true] {
        bundle(&folder, &Case { seccomp, ..PLAIN })?;
        let ours = by_keeper(&folder).map_err(|error| first_lines(&error));
        let ours = ours.map(|ms| vec![ms]);
        let crun = installed("crun").and_then(|()| {
            let rounds = (0..3).map(|_| launches("crun", "crun", &folder, &PLAIN));
            let costs: anyhow::Result<Vec<Cost>> = rounds.collect();
            let costs = costs.map_err(|error| first_lines(&error))?;
            Ok(costs.iter().map(|cost| cost.wall_ms).collect())
        });
        let with = if seccomp { "with" } else { "without" };
        let tools = [("keeper", String::new()), ("crun", String::new())];
        print(
            &format!("launch by the keeper, {with} seccomp, beside crun's command line"),
            "ms",
            &tools,
            &[ours, crun],
            |ms| *ms,
        );
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A launch by the keeper, as the CRI server has it done: what a test of its crate measures.
fn by_keeper(folder: &Path) -> anyhow::Result<f64> {
    let output = run_program(
        Command::new("cargo")
            .args(["nextest", "run", "--release", "--package", "cri-shim"])
            .args([
                "--run-ignored",
                "only",
                "--no-capture",
                "launch_of_a_bundle",
            ])
            .env("BUNDLE", folder),
    )?;
    let text = String::from_utf8_lossy(&output.stdout);
    let figure = text
        .lines()
        .find_map(|line| line.strip_prefix("keeper's launch, ms: "));
    let figure = figure.with_context(|| format!("the test printed {text:?}"))?;
    Ok(figure.trim().parse()?)
}

fn installed(command: &str) -> Result<(), String> {
    let program = command.split(' ').next().unwrap_or_default();
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program} >/dev/null")])
        .status();
    if found.is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err("it is not installed".to_owned())
    }
}

fn first_lines(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.lines().take(3).collect::<Vec<_>>().join(" ")
}

fn print<T>(
    name: &str,
    unit: &'static str,
    tools: &[(&str, String)],
    figures: &[Result<Vec<T>, String>],
    pick: impl Fn(&T) -> f64,
) {
    let values = tools.iter().zip(figures).map(|((name, _), figures)| {
        let middle = figures
            .as_ref()
            .map(|list| median(list.iter().map(&pick).collect()));
        ((*name).to_owned(), middle.map_err(Clone::clone))
    });
    let row = Row {
        name: name.to_owned(),
        unit,
        values: values.collect(),
    };
    row.print();
}

/// A shell's lines that run `body`, where `launch` launches container number `$i`: in a mount namespace with an overlay
/// as root file system.
fn script(name: &str, command: &str, folder: &Path, mounts: u32, body: &str) -> String {
    // Debian's crun refuses a hybrid cgroup hierarchy: it is hidden from it.
    let hide = if name == "crun" {
        "! mountpoint -q /sys/fs/cgroup/unified || umount -l /sys/fs/cgroup/unified"
    } else {
        ""
    };
    format!(
        "set -e; cd {0}; {hide}
        mount -t overlay overlay -o lowerdir=image,upperdir=upper,workdir=work rootfs
        i=0; while [ $i -lt {mounts} ]; do mkdir -p mounts/$i; mount --bind image mounts/$i; i=$((i+1)); done
        launch() {{ {command} --root {0}/state-{name} run --bundle {0} {name}-$i; }}
        i=0; launch
        {body}",
        folder.display(),
    )
}

/// The cost of a launch, over many in a row, in milliseconds: those of the same loop without launches are taken off.
fn launches(name: &str, command: &str, folder: &Path, case: &Case) -> anyhow::Result<Cost> {
    let pause = match case.pause_ms {
        0 => String::new(),
        ms => format!("sleep 0.{ms:03};"),
    };
    let body = format!(
        "count() {{ i=1; while [ $i -le {} ]; do {pause} $1; i=$((i+1)); done; }}
        for what in : launch; do date +%s%N; count $what; date +%s%N; times >cpu; tail -n 1 cpu; done",
        case.launches
    );
    let script = script(name, command, folder, case.mounts, &body);
    let output = run_program(Command::new("unshare").args(["--mount", "sh", "-c", &script]))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let [empty_start, empty_end, empty_cpu, start, end, cpu] = lines.as_slice() else {
        anyhow::bail!("{name} printed {text:?}");
    };
    let clock = |from: &str, to: &str| -> anyhow::Result<f64> {
        Ok((to.parse::<f64>()? - from.parse::<f64>()?) / 1e6)
    };
    let launches = f64::from(case.launches);
    let empty = clock(empty_start, empty_end)?;
    Ok(Cost {
        wall_ms: (clock(start, end)? - empty) / launches,
        cpu_ms: (processor_ms(cpu)? - processor_ms(empty_cpu)?) / launches,
    })
}

/// The children's line of a shell's `times`: `0m0.120000s 0m0.300000s`.
fn processor_ms(line: &str) -> anyhow::Result<f64> {
    line.split_whitespace().try_fold(0.0, |sum, part| {
        let (minutes, seconds) = part
            .trim_end_matches('s')
            .split_once('m')
            .with_context(|| format!("times printed {line:?}"))?;
        Ok(sum + minutes.parse::<f64>()? * 60_000.0 + seconds.parse::<f64>()? * 1000.0)
    })
}

/// The largest memory of one launch, as the kernel counted it for its largest process.
fn peak_kib(name: &str, command: &str, folder: &Path) -> anyhow::Result<f64> {
    let body = format!(
        "i=1; /usr/bin/time --format %M {command} --root {0}/state-{name} run --bundle {0} {name}-$i",
        folder.display()
    );
    let script = script(name, command, folder, 0, &body);
    let output = run_program(Command::new("unshare").args(["--mount", "sh", "-c", &script]))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = text.lines().last().unwrap_or_default();
    last.parse()
        .with_context(|| format!("time printed {text:?}"))
}

fn bundle(folder: &Path, case: &Case) -> anyhow::Result<()> {
    let bin = folder.join("image/bin");
    fs::create_dir_all(&bin)?;
    for entry in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(folder.join("image").join(entry))?;
    }
    for place in ["rootfs", "upper", "work"] {
        fs::create_dir_all(folder.join(place))?;
    }
    fs::copy(busybox()?, bin.join("true")).context("copy busybox")?;
    let namespaces =
        ["pid", "mount", "uts", "ipc", "network", "cgroup"].map(|kind| json!({ "type": kind }));
    let capabilities = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_KILL"];
    let mut spec = json!({
        "ociVersion": "1.0.2", "hostname": "bench", "root": { "path": "rootfs", "readonly": true },
        "process": { "args": ["/bin/true"], "cwd": "/", "env": ["PATH=/bin"], "noNewPrivileges": true, "user": { "uid": 0, "gid": 0 },
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities } },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": { "namespaces": namespaces,
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"] },
    });
    if case.limits {
        spec["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "cpu": { "shares": 512, "quota": 50_000, "period": 100_000 }, "pids": { "limit": 50 } });
    }
    if case.seccomp {
        spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [{ "names": calls()?, "action": "SCMP_ACT_ALLOW" }] });
    }
    fs::write(folder.join("config.json"), spec.to_string())?;
    Ok(())
}

/// Names of the first 300 calls that this machine's headers have.
fn calls() -> anyhow::Result<Vec<String>> {
    let headers = [
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/include/asm/unistd_64.h",
    ];
    let text = headers
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .context("the kernel's headers are not there")?;
    let names = text.lines().filter_map(|line| {
        line.strip_prefix("#define __NR_")?
            .split_whitespace()
            .next()
    });
    Ok(names.take(300).map(str::to_owned).collect())
}

/// Debian's busybox, which is static.
pub fn busybox() -> anyhow::Result<PathBuf> {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places
        .into_iter()
        .find(|path| path.exists())
        .context("busybox is not there")
}
