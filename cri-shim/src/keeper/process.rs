//! The keeper's `main`: two stages, so that the caller can wait for the first and has no child afterwards.

use super::environment;
use super::scribe_link::ScribeLink;
use super::server::{Keeper, Parts};
use linux::namespace::{self, NamespaceKind};
use rustix::fs::{CWD, Mode, OFlags};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[derive(Debug)]
struct Options {
    dir: PathBuf,
    cgroup: Option<String>,
    stage: Stage,
}

#[derive(Debug, PartialEq)]
enum Stage {
    /// Detach, start the second stage, end.
    Detach,
    /// Hold containers; the listening socket is descriptor 0.
    Hold,
    /// Hold containers; descriptor 0 is a socket with all that the program before this one held.
    Resume,
    /// Read a state from descriptor 0 and tell by the exit code whether it makes sense.
    Check,
}

/// The keeper as a process: `PROGRAM keeper --dir DIR [--cgroup NAME]`, with its listening socket as descriptor 0. The
/// caller must not have started a thread.
///
/// Returns the exit code; what went wrong at the start is printed.
pub fn main(args: Vec<OsString>) -> i32 {
    let result = parse_options(args).and_then(|options| match options.stage {
        Stage::Detach => detach(&options),
        Stage::Hold => hold(&options),
        Stage::Resume => super::upgrade::resume(),
        Stage::Check => super::upgrade::check(),
    });
    match result {
        Ok(()) => 0,
        Err(message) => {
            eprintln!("orlop keeper: {message}");
            1
        }
    }
}

/// `args` are the words after the program's name.
fn parse_options(args: Vec<OsString>) -> Result<Options, String> {
    let mut options = Options {
        dir: PathBuf::new(),
        cgroup: None,
        stage: Stage::Detach,
    };
    let mut args = args.into_iter().filter(|arg| arg != "keeper");
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--dir") => options.dir = args.next().ok_or("--dir needs a directory")?.into(),
            Some("--cgroup") => {
                let name = args.next().ok_or("--cgroup needs a name")?;
                options.cgroup = Some(name.into_string().map_err(|_| "--cgroup is not UTF-8")?);
            }
            Some("--hold") => options.stage = Stage::Hold,
            Some("--resume") => options.stage = Stage::Resume,
            Some("--check") => options.stage = Stage::Check,
            _ => return Err(format!("unknown argument {}", arg.display())),
        }
    }
    let needs_dir = matches!(options.stage, Stage::Detach | Stage::Hold);
    if needs_dir && !options.dir.is_absolute() {
        return Err("--dir must be an absolute path".to_owned());
    }
    Ok(options)
}

/// The first stage.
fn detach(options: &Options) -> Result<(), String> {
    // Whatever the caller has open beyond the standard three is not for us to keep.
    linux::process::close_on_exec_from(3).map_err(|error| error.to_string())?;
    environment::leave_session();
    environment::raise_descriptor_limit();
    let program = environment::read_only_program(Path::new("/proc/self/exe"));
    let path = match &program {
        Ok(program) => PathBuf::from(format!("/proc/self/fd/{}", program.as_raw_fd())),
        Err(error) => {
            eprintln!("orlop keeper: its program can be written while it runs: {error}");
            PathBuf::from("/proc/self/exe")
        }
    };
    let listener = own_stdin()?;
    let mut command = Command::new(path);
    command
        .arg("keeper")
        .arg("--hold")
        .arg("--dir")
        .arg(&options.dir);
    if let Some(cgroup) = &options.cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    // The second stage is an orphan at once, and its parent is whoever adopts orphans here.
    command
        .stdin(Stdio::from(listener))
        .spawn()
        .map(drop)
        .map_err(|cause| format!("second stage: {cause}"))
}

/// The second stage: the keeper.
fn hold(options: &Options) -> Result<(), String> {
    let text = |error: linux::Error| error.to_string();
    let listener = own_stdin()?;
    let mut complaints = Vec::new();
    environment::clear_umask();
    environment::become_subreaper().map_err(text)?;
    if let Some(cgroup) = &options.cgroup
        && let Err(error) = environment::enter_cgroup(cgroup)
    {
        complaints.push(format!(
            "no cgroup of its own, stopping the caller's unit stops it: {error}"
        ));
    }
    let containers = options.dir.join("containers");
    std::fs::create_dir_all(&containers)
        .map_err(|cause| format!("create {}: {cause}", containers.display()))?;
    let containers = open_dir(&containers)?;
    let mount_namespace = namespace::open_own(NamespaceKind::Mount).map_err(text)?;
    if let Err(error) = environment::leave_mount_namespace(&options.dir) {
        complaints.push(format!(
            "keeps the host's mount table, launches cost more: {error}"
        ));
    }
    let scribe = ScribeLink::new(mount_namespace);
    let mut keeper = Keeper::new(Parts::fresh(listener, containers, scribe)).map_err(text)?;
    silence()?;
    complaints
        .into_iter()
        .for_each(|complaint| keeper.log(complaint));
    keeper.adopt_all();
    keeper.run().map_err(text)
}

fn open_dir(path: &Path) -> Result<OwnedFd, String> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| format!("open {}: {errno}", path.display()))
}

/// Descriptor 0 under another number, so that standard input can become `/dev/null`.
pub(crate) fn own_stdin() -> Result<OwnedFd, String> {
    rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3)
        .map_err(|errno| format!("duplicate stdin: {errno}"))
}

/// Lets go of the caller's standard streams: nobody may read them tomorrow, and a full pipe must not stop us.
pub(crate) fn silence() -> Result<(), String> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| format!("open /dev/null: {errno}"))?;
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .map_err(|errno| format!("dup2: {errno}"))
}
