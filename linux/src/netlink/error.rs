//! A refused netlink request.

use std::fmt;
use std::io;

/// What the kernel refused: the operation, its object, the errno, and the kernel's own words about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// For instance `add link`.
    pub operation: &'static str,
    /// What it was done to, by name: `veth0`, `10.1.0.1/24 on eth0`.
    pub object: String,
    /// As in `errno.h`; 0 where the answer was malformed.
    pub errno: i32,
    /// The extended acknowledgement's message; empty if there was none.
    pub detail: String,
}

impl Error {
    /// Whether the kernel answered with this errno.
    pub fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }

    pub(super) fn io(
        operation: &'static str,
        object: impl Into<String>,
        cause: &io::Error,
    ) -> Self {
        Self {
            operation,
            object: object.into(),
            errno: cause.raw_os_error().unwrap_or(0),
            detail: if cause.raw_os_error().is_some() {
                String::new()
            } else {
                cause.to_string()
            },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            object,
            errno,
            detail,
        } = self;
        write!(f, "{operation} {object}: {}", crate::describe_errno(*errno))?;
        if detail.is_empty() {
            Ok(())
        } else {
            write!(f, ": {}", detail.trim_end_matches('.'))
        }
    }
}

impl std::error::Error for Error {}

impl From<crate::Error> for Error {
    fn from(cause: crate::Error) -> Self {
        Self {
            operation: cause.operation,
            object: cause.object,
            errno: cause.errno,
            detail: String::new(),
        }
    }
}

/// A refusal that doesn't know yet what was asked.
#[derive(Debug)]
pub(super) struct Refusal {
    pub errno: i32,
    pub detail: String,
}

impl Refusal {
    pub(super) fn on(self, operation: &'static str, object: impl Into<String>) -> Error {
        Error {
            operation,
            object: object.into(),
            errno: self.errno,
            detail: self.detail,
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(cause: io::Error) -> Self {
        Self {
            errno: cause.raw_os_error().unwrap_or(0),
            detail: String::new(),
        }
    }
}
