//! runc's command line.

mod args;
mod console;
mod create;
mod events;
mod exec;
mod features;
mod foreground;
mod hooks;
mod inspect;
mod lifecycle;
mod log;
mod resctrl;
mod rootless;
mod scope;
mod seal;
mod spec;
mod update;

use args::{Cli, Command};
use clap::Parser;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

/// A failed command: what is printed, and what is exited with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Plan(#[from] crate::Error),
    #[error(transparent)]
    Launch(#[from] crate::LaunchError),
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    #[error(transparent)]
    Systemd(#[from] crate::systemd::SystemdError),
    #[error("{0}")]
    Kernel(#[from] linux::Error),
    #[error("{0}")]
    Other(String),
    #[error("{0}")]
    Exec(Box<Failure>),
}

impl Failure {
    pub(crate) fn other(text: impl Into<String>) -> Self {
        Failure::Other(text.into())
    }

    fn exit_code(&self) -> i32 {
        match self {
            Failure::Launch(error) => error.exit_code,
            Failure::Exec(_) => 255,
            _ => 1,
        }
    }
}

type Outcome = Result<i32, Failure>;

/// What holds for every command.
struct Context {
    /// The directory of all states.
    root: PathBuf,
    /// It is the caller's, and not the default.
    root_given: bool,
    systemd_cgroup: bool,
}

/// Runs one command of runc's command line and returns the exit code. `args[0]` is the program's name.
///
/// The process must have a single thread.
pub fn main(args: Vec<OsString>) -> i32 {
    // Before the words are read: that costs more than the look.
    let sealed = if args
        .iter()
        .any(|word| ["create", "run", "exec"].iter().any(|name| word == name))
    {
        seal::restart_sealed()
    } else {
        Ok(())
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { 1 } else { 0 };
        }
    };
    if cli.version {
        println!(
            "orlop runtime version {}\nspec: {}",
            env!("CARGO_PKG_VERSION"),
            features::SPEC_VERSION
        );
        return 0;
    }
    let Some(command) = cli.command else {
        eprintln!("error: no command given; --help lists them");
        return 1;
    };
    let logging = match log::Log::open(cli.log.as_deref(), &cli.log_format, cli.debug) {
        Ok(log) => log::Logging::start(log),
        Err(failure) => {
            eprintln!("error: {failure}");
            return failure.exit_code();
        }
    };
    let context = Context {
        root_given: cli.root.is_some(),
        root: cli.root.unwrap_or_else(rootless::default_root),
        systemd_cgroup: cli.systemd_cgroup,
    };
    match sealed
        .map_err(Failure::from)
        .and_then(|()| run(&context, command))
    {
        Ok(code) => code,
        Err(failure) => {
            let text = failure.to_string();
            // Marked as the parser marks its own: warnings go there too. Nothing is to be done if nobody takes it.
            let _ = writeln!(std::io::stderr(), "error: {text}");
            logging.failed(&text);
            failure.exit_code()
        }
    }
}

fn run(context: &Context, command: Command) -> Outcome {
    match command {
        Command::Create(args) => create::create(context, &args),
        Command::Run(args) => create::run(context, &args),
        Command::Start(args) => lifecycle::start(context, &args.id),
        Command::Kill(args) => lifecycle::kill(context, &args),
        Command::Delete(args) => lifecycle::delete(context, &args.id, args.force),
        Command::Pause(args) => lifecycle::pause(context, &args.id),
        Command::Resume(args) => lifecycle::resume(context, &args.id),
        // As runc: what failed here must not be taken for the program's own status.
        Command::Exec(args) => exec::exec(context, &args).map_err(|failure| match failure {
            Failure::Launch(_) => failure,
            other => Failure::Exec(Box::new(other)),
        }),
        Command::State(args) => inspect::state(context, &args.id),
        Command::List(args) => inspect::list(context, &args.format, args.quiet),
        Command::Ps(args) => inspect::ps(context, &args.format, &args.id, &args.ps_options),
        Command::Events(args) => events::events(context, &args.id, args.stats, &args.interval),
        Command::Update(args) => update::update(context, &args),
        Command::Spec(args) => spec::spec(args.bundle.as_deref(), args.rootless),
        Command::Features(_) => features::features(),
    }
}
