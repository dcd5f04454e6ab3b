//! What can go wrong before a container exists ([`Error`]) and while it comes to be ([`LaunchError`]).

use serde::{Deserialize, Serialize};

/// Planning a launch or an exec failed; nothing was started.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The spec asks for something that is malformed or contradicts itself.
    #[error("{field}: {reason}")]
    Spec {
        /// The spec's field, in runtime-spec's words: `linux.namespaces[2].path`.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The spec asks for something that this host cannot do.
    #[error("{field}: not supported on this host: {reason}")]
    Unsupported {
        /// The spec's field.
        field: String,
        /// What the host lacks.
        reason: String,
    },
    /// The kernel refused a step of the preparation.
    #[error("{step}: {cause}")]
    Kernel {
        /// The step, with its object: `open mount source for /data`.
        step: String,
        /// The system call that failed.
        cause: linux::Error,
    },
}

impl Error {
    pub(crate) fn spec(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Spec {
            field: field.into(),
            reason: reason.into(),
        }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::Unsupported {
            field: field.into(),
            reason: reason.into(),
        }
    }
}

/// Names the preparation step in which the kernel refused.
pub(crate) trait DuringPlan<T> {
    /// `step` is built only on failure.
    fn during<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T> DuringPlan<T> for linux::Result<T> {
    fn during<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|cause| Error::Kernel {
            step: step().into(),
            cause,
        })
    }
}

/// A container's (or exec's) first process could not be brought to its `execve`, or that failed.
///
/// It is made in the child and reaches the caller whole, through the status descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {cause}")]
pub struct LaunchError {
    /// What was being done, with its object: `mount proc on /proc`.
    pub step: String,
    /// Which system call failed and why, or what was found wrong.
    pub cause: String,
    /// The errno, 0 where no system call failed.
    pub errno: i32,
    /// What runc's command line exits with: 127 if the program was not found, 126 if it can't be executed, else 1.
    pub exit_code: i32,
}

impl LaunchError {
    /// A step that failed for a reason of our own.
    pub fn new(step: impl Into<String>, cause: impl Into<String>) -> Self {
        LaunchError {
            step: step.into(),
            cause: cause.into(),
            errno: 0,
            exit_code: 1,
        }
    }

    /// As it travels through the status descriptor.
    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Names the launch step in which the kernel refused.
pub(crate) trait DuringLaunch<T> {
    /// `step` is built only on failure.
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, LaunchError>;
}

impl<T> DuringLaunch<T> for linux::Result<T> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T, LaunchError> {
        self.map_err(|cause| LaunchError {
            step: step().into(),
            errno: cause.errno,
            cause: cause.to_string(),
            exit_code: 1,
        })
    }
}

/// What the status descriptor delivers before its end from a process that waits at its gate: one that was killed on the
/// way says nothing either.
pub(crate) const WAITS_AT_GATE: &[u8] = b"\x06";

/// Decodes what the status descriptor delivered up to its end.
///
/// # Errors
/// The child's error. No bytes mean that `execve` succeeded, one that the process waits at its gate.
pub fn read_status(bytes: &[u8]) -> Result<(), LaunchError> {
    if bytes.is_empty() || bytes == WAITS_AT_GATE {
        return Ok(());
    }
    Err(serde_json::from_slice(bytes).unwrap_or_else(|_| {
        LaunchError::new(
            "read the container's status",
            String::from_utf8_lossy(bytes).into_owned(),
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launch_error_survives_the_status_pipe() {
        let error = LaunchError {
            step: "mount /proc".into(),
            cause: "fsmount: no".into(),
            errno: 1,
            exit_code: 1,
        };
        assert_eq!(read_status(&error.encode()), Err(error));
        assert_eq!(read_status(b""), Ok(()));
    }

    #[test]
    fn garbage_in_the_status_pipe_is_an_error_with_the_garbage_in_it() {
        assert!(
            read_status(b"thread panicked")
                .unwrap_err()
                .to_string()
                .contains("thread panicked")
        );
    }
}
