//! The one error of this crate: which system call failed, on what, and why.

use std::fmt;

/// A failed kernel operation: the operation, the object it was done to, and the errno.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// The system call or the operation in a word or two, for instance `mount` or `write cgroup file`.
    pub operation: &'static str,
    /// What it was done to: a path, a descriptor's name, a pid. Empty where there is none.
    pub object: String,
    /// The errno, as in `errno.h`; 0 where the kernel's answer was malformed rather than refused.
    pub errno: i32,
}

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `operation` on `object` failed with `errno`.
    pub fn new(operation: &'static str, object: impl Into<String>, errno: i32) -> Self {
        Error {
            operation,
            object: object.into(),
            errno,
        }
    }

    /// `operation` on `object` failed with this thread's last errno.
    pub fn last(operation: &'static str, object: impl Into<String>) -> Self {
        Error::new(operation, object, nix::errno::Errno::last_raw())
    }

    /// Wraps an I/O error; one without an errno (a short read, invalid UTF-8) becomes errno 0.
    pub fn io(operation: &'static str, object: impl Into<String>, cause: &std::io::Error) -> Self {
        Error::new(operation, object, cause.raw_os_error().unwrap_or(0))
    }

    /// Whether the kernel answered with this errno.
    pub fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }
}

/// The words for an errno, in lower case: `operation not permitted`.
pub fn describe_errno(errno: i32) -> String {
    if errno == 0 {
        return "unexpected answer".to_owned();
    }
    let text = nix::errno::Errno::from_raw(errno).desc();
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => format!("errno {errno}"),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        write!(f, ": {}", describe_errno(self.errno))
    }
}

impl std::error::Error for Error {}

/// Adds the operation and its object to a system call's result.
pub(crate) trait Context<T> {
    /// Names what failed; `object` is built only on failure.
    fn context<S: Into<String>>(
        self,
        operation: &'static str,
        object: impl FnOnce() -> S,
    ) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, rustix::io::Errno> {
    fn context<S: Into<String>>(
        self,
        operation: &'static str,
        object: impl FnOnce() -> S,
    ) -> Result<T> {
        self.map_err(|errno| Error::new(operation, object(), errno.raw_os_error()))
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context<S: Into<String>>(
        self,
        operation: &'static str,
        object: impl FnOnce() -> S,
    ) -> Result<T> {
        self.map_err(|errno| Error::new(operation, object(), errno as i32))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context<S: Into<String>>(
        self,
        operation: &'static str,
        object: impl FnOnce() -> S,
    ) -> Result<T> {
        self.map_err(|cause| Error::io(operation, object(), &cause))
    }
}

/// Turns a raw system call's return value into a result.
pub(crate) fn check(value: libc::c_long) -> nix::Result<libc::c_long> {
    if value < 0 {
        Err(nix::errno::Errno::last())
    } else {
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_operation_object_and_cause() {
        let error = Error::new("mount", "proc on /proc", libc::EPERM);
        assert_eq!(
            error.to_string(),
            "mount proc on /proc: operation not permitted"
        );
        assert_eq!(
            Error::new("fork", "", libc::EAGAIN).to_string(),
            "fork: try again"
        );
    }
}
