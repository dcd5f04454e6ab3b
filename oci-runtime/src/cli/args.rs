//! The words and flags, as runc has them.

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, FromArgMatches, Parser, Subcommand};
use std::path::PathBuf;

/// Run containers by the Open Container Initiative's runtime specification.
#[derive(Debug, Parser)]
#[command(name = "orlop runtime", disable_version_flag = true)]
pub(super) struct Cli {
    /// Where containers' states are kept [default: /run/orlop/runtime, for users below $XDG_RUNTIME_DIR]
    #[arg(long, global = false)]
    pub root: Option<PathBuf>,
    /// Where errors are also written, and what is told besides them
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// How: text or json
    #[arg(long, default_value = "text")]
    pub log_format: String,
    /// Write more
    #[arg(long)]
    pub debug: bool,
    /// Have systemd manage cgroups: linux.cgroupsPath is slice:prefix:name, for the unit prefix-name.scope
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Ignored: whether root is there is seen, not told
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rootless: Option<String>,
    /// Print the version
    #[arg(short = 'v', long)]
    pub version: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// The verbs: each one's own words are put together only when it is the one that was called, since all of them together
/// take longer than a launch's other preparations.
macro_rules! commands {
    ($($name:literal $verb:ident($args:ty): $about:literal,)*) => {
        #[derive(Debug)]
        pub(super) enum Command {
            $($verb($args),)*
        }

        impl FromArgMatches for Command {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                match matches.subcommand() {
                    $(Some(($name, matches)) => <$args>::from_arg_matches(matches).map(Command::$verb),)*
                    _ => Err(clap::Error::new(ErrorKind::MissingSubcommand)),
                }
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }

        impl Subcommand for Command {
            fn augment_subcommands(command: clap::Command) -> clap::Command {
                command$(.subcommand(clap::Command::new($name).about($about).defer(<$args>::augment_args)))*
            }

            fn augment_subcommands_for_update(command: clap::Command) -> clap::Command {
                Self::augment_subcommands(command)
            }

            fn has_subcommand(name: &str) -> bool {
                [$($name),*].contains(&name)
            }
        }
    };
}

commands! {
    "create" Create(CreateArgs): "Create a container; its program waits for start",
    "start" Start(IdArgs): "Let a created container's program run",
    "run" Run(RunArgs): "Create and start a container",
    "state" State(IdArgs): "Print a container's state",
    "kill" Kill(KillArgs): "Send a signal to a container",
    "delete" Delete(DeleteArgs): "Remove what is left of a container",
    "exec" Exec(ExecArgs): "Run another program in a container",
    "ps" Ps(PsArgs): "List a container's processes",
    "list" List(ListArgs): "List containers",
    "pause" Pause(IdArgs): "Stop all of a container's processes",
    "resume" Resume(IdArgs): "Let a paused container go on",
    "update" Update(UpdateArgs): "Change a container's limits",
    "events" Events(EventsArgs): "Print a container's statistics as they change",
    "spec" Spec(SpecArgs): "Write an example config.json",
    "features" Features(NoArgs): "Print what this runtime can do",
}

#[derive(Debug, Args)]
pub(super) struct NoArgs {}

#[derive(Debug, Args)]
pub(super) struct IdArgs {
    pub id: String,
}

#[derive(Debug, Args)]
pub(super) struct DeleteArgs {
    /// Kill it first if it runs
    #[arg(short, long)]
    pub force: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub(super) struct PsArgs {
    #[arg(short, long, default_value = "table")]
    pub format: String,
    pub id: String,
    /// Options for ps
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub ps_options: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[arg(short, long, default_value = "table")]
    pub format: String,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Print them once
    #[arg(long)]
    pub stats: bool,
    /// How often
    #[arg(long, default_value = "5s")]
    pub interval: String,
    pub id: String,
}

#[derive(Debug, Args)]
pub(super) struct SpecArgs {
    #[arg(short, long)]
    pub bundle: Option<PathBuf>,
    /// For a user without privileges
    #[arg(long)]
    pub rootless: bool,
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The bundle's directory
    #[arg(short, long, default_value = ".")]
    pub bundle: PathBuf,
    /// A unix socket that gets the terminal's master
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    /// Write the pid there
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// A unix socket that gets a pidfd of the container's first process
    #[arg(long)]
    pub pidfd_socket: Option<PathBuf>,
    /// How many descriptors above 2 the program inherits
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// Keep the caller's session keyring
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Accepted: an initial file system is seen, not told
    #[arg(long)]
    pub no_pivot: bool,
    pub id: String,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    pub create: CreateArgs,
    /// Return as soon as the program runs
    #[arg(short, long)]
    pub detach: bool,
    /// Leave the stopped container
    #[arg(long)]
    pub keep: bool,
    /// Accepted
    #[arg(long)]
    pub no_subreaper: bool,
}

#[derive(Debug, Args)]
pub(super) struct KillArgs {
    /// All processes, not only the first
    #[arg(short, long)]
    pub all: bool,
    pub id: String,
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// A file with the process, as in config.json
    #[arg(short, long)]
    pub process: Option<PathBuf>,
    #[arg(long)]
    pub console_socket: Option<PathBuf>,
    #[arg(long)]
    pub cwd: Option<PathBuf>,
    /// NAME=VALUE
    #[arg(short, long)]
    pub env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// UID[:GID]
    #[arg(short, long)]
    pub user: Option<String>,
    #[arg(short = 'g', long)]
    pub additional_gids: Vec<u32>,
    #[arg(short, long)]
    pub detach: bool,
    #[arg(long)]
    pub pid_file: Option<PathBuf>,
    /// A unix socket that gets a pidfd of the process
    #[arg(long)]
    pub pidfd_socket: Option<PathBuf>,
    #[arg(long)]
    pub process_label: Option<String>,
    #[arg(long)]
    pub apparmor: Option<String>,
    #[arg(long)]
    pub no_new_privs: bool,
    /// A capability to add
    #[arg(short, long)]
    pub cap: Vec<String>,
    #[arg(long, default_value_t = 0)]
    pub preserve_fds: u32,
    /// A cgroup below the container's, which exists: PATH, or for some of v1's controllers CONTROLLER[,..]:PATH
    #[arg(long)]
    pub cgroup: Vec<String>,
    /// Also in a paused container
    #[arg(long)]
    pub ignore_paused: bool,
    pub id: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct UpdateArgs {
    /// A file with the limits, as in config.json; - is the standard input
    #[arg(short, long)]
    pub resources: Option<PathBuf>,
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    #[arg(long)]
    pub cpu_period: Option<u64>,
    #[arg(long, allow_negative_numbers = true)]
    pub cpu_quota: Option<i64>,
    #[arg(long)]
    pub cpu_burst: Option<u64>,
    /// Microseconds; cgroup v1 only
    #[arg(long)]
    pub cpu_rt_period: Option<u64>,
    /// Microseconds in each period; cgroup v1 only
    #[arg(long, allow_negative_numbers = true)]
    pub cpu_rt_runtime: Option<i64>,
    #[arg(long, visible_alias = "cpu-shares")]
    pub cpu_share: Option<u64>,
    #[arg(long)]
    pub cpu_idle: Option<i64>,
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Bytes, or with a unit as in 64M
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    #[arg(long, allow_negative_numbers = true)]
    pub pids_limit: Option<i64>,
    pub id: String,
}
