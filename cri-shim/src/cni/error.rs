//! What can go wrong between the configuration folder and a connected pod.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A plugin's own report (CNI 1.1 §5, Error).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginFailure {
    /// The plugin's type.
    pub plugin: String,
    /// The network's name.
    pub network: String,
    /// `ADD`, `DEL`, ...
    pub command: &'static str,
    /// The specification's or the plugin's error code; 0 if the plugin gave none.
    pub code: u64,
    /// What happened.
    pub msg: String,
    /// More about it; may be empty.
    pub details: String,
}

impl fmt::Display for PluginFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of plugin {} in network {}: {}",
            self.command, self.plugin, self.network, self.msg
        )?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        if self.code != 0 {
            write!(f, " (code {})", self.code)?;
        }
        Ok(())
    }
}

/// A network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no configuration yet.
    #[error("cni plugin not initialized: no network config found in {dir}")]
    NotConfigured {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The configuration can't be read.
    #[error("read network config {path}: {source}")]
    Read {
        /// The file or the folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is not valid.
    #[error("parse network config {path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Which key, and what about it.
        reason: String,
    },
    /// No such plugin.
    #[error("find plugin {plugin}: not in {dirs:?}")]
    PluginMissing {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// A plugin could not be executed.
    #[error("execute plugin {path}: {source}")]
    Execute {
        /// The program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A plugin did not end in time, and was killed.
    #[error("execute plugin {path}: not done after {after:?}")]
    Timeout {
        /// The program.
        path: PathBuf,
        /// The limit.
        after: Duration,
    },
    /// A plugin reported an error.
    #[error("{0}")]
    Plugin(Box<PluginFailure>),
    /// A plugin succeeded with a result that is none.
    #[error("read result of plugin {plugin}: {reason}")]
    Result {
        /// Its type.
        plugin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An ADD failed, and so did the DEL that was to undo it.
    #[error("{add}; then, to undo it: {undo}")]
    AddAndUndo {
        /// Why it failed.
        add: Box<Error>,
        /// What may be left.
        undo: Box<Error>,
    },
    /// Some of a teardown failed; the rest is done.
    #[error("{}", join(.0))]
    Teardown(Vec<Error>),
    /// The thread that ran the plugins died.
    #[error("run network plugins: {cause}")]
    Interrupted {
        /// How.
        cause: String,
    },
}

fn join(errors: &[Error]) -> String {
    errors
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}
