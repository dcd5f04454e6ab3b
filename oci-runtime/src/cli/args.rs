//! The words and flags, as runc has them.

use clap::{Args, Parser, Subcommand};
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
    /// Manage cgroups through systemd
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

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a container; its program waits for start
    Create(CreateArgs),
    /// Let a created container's program run
    Start { id: String },
    /// Create and start a container
    Run(RunArgs),
    /// Print a container's state
    State { id: String },
    /// Send a signal to a container
    Kill(KillArgs),
    /// Remove what is left of a container
    Delete {
        /// Kill it first if it runs
        #[arg(short, long)]
        force: bool,
        id: String,
    },
    /// Run another program in a container
    Exec(ExecArgs),
    /// List a container's processes
    Ps {
        #[arg(short, long, default_value = "table")]
        format: String,
        id: String,
        /// Options for ps
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        ps_options: Vec<String>,
    },
    /// List containers
    List {
        #[arg(short, long, default_value = "table")]
        format: String,
        /// Only ids
        #[arg(short, long)]
        quiet: bool,
    },
    /// Stop all of a container's processes
    Pause { id: String },
    /// Let a paused container go on
    Resume { id: String },
    /// Change a container's limits
    Update(UpdateArgs),
    /// Print a container's statistics as they change
    Events {
        /// Print them once
        #[arg(long)]
        stats: bool,
        /// How often
        #[arg(long, default_value = "5s")]
        interval: String,
        id: String,
    },
    /// Write an example config.json
    Spec {
        #[arg(short, long)]
        bundle: Option<PathBuf>,
        /// For a user without privileges
        #[arg(long)]
        rootless: bool,
    },
    /// Print what this runtime can do
    Features,
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
