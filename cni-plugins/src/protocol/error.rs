//! A plugin's report of failure.

use serde_json::json;

use super::Version;

/// An error as a plugin prints it (CNI 1.1 §5, Error). The codes below 100 are the specification's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.sentence())]
pub struct Error {
    code: u32,
    msg: String,
    details: String,
}

impl Error {
    fn new(code: u32, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            details: String::new(),
        }
    }

    /// 1: the configuration's version is none that is spoken here.
    pub fn incompatible_version(wanted: &str) -> Self {
        let supported = Version::names().collect::<Vec<_>>().join(" ");
        Self::new(1, "incompatible CNI versions").details(format!(
            "config is {wanted:?}, plugin supports [{supported}]"
        ))
    }

    /// 1: the configuration's version doesn't have the command yet.
    pub fn too_old(command: &str) -> Self {
        Self::new(1, format!("config version does not allow {command}"))
    }

    /// 1: the result is of a kind that the configuration's version has no place for.
    pub fn inexpressible(msg: impl Into<String>) -> Self {
        Self::new(1, msg)
    }

    /// 4: a variable is missing or has no acceptable value.
    pub fn environment(msg: impl Into<String>) -> Self {
        Self::new(4, msg)
    }

    /// 5: a file or a stream failed.
    pub fn io(msg: impl Into<String>) -> Self {
        Self::new(5, msg)
    }

    /// 6: what should be JSON, or should have a certain form, is not and has not.
    pub fn decode(msg: impl Into<String>) -> Self {
        Self::new(6, msg)
    }

    /// 7: the configuration says what can't be.
    pub fn config(msg: impl Into<String>) -> Self {
        Self::new(7, msg)
    }

    /// 8: the path is not that of a network namespace.
    pub fn netns(msg: impl Into<String>) -> Self {
        Self::new(8, msg)
    }

    /// 11: what is needed isn't there now; the runtime may try again.
    pub fn try_again(msg: impl Into<String>) -> Self {
        Self::new(11, msg)
    }

    /// 50: the plugin can't serve any ADD (STATUS).
    pub fn unavailable(msg: impl Into<String>) -> Self {
        Self::new(50, msg)
    }

    /// 999: the operation failed.
    pub fn failed(msg: impl Into<String>) -> Self {
        Self::new(999, msg)
    }

    /// Another plugin's report, passed on as it is; `fallback` if it has no message.
    pub fn passed_on(report: &[u8], fallback: impl FnOnce() -> String) -> Self {
        let report: serde_json::Value = serde_json::from_slice(report).unwrap_or_default();
        let text = |key: &str| {
            report
                .get(key)
                .and_then(|v| v.as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let code = report
            .get("code")
            .and_then(|v| v.as_u64())
            .and_then(|code| u32::try_from(code).ok());
        match text("msg") {
            msg if msg.is_empty() => Self::failed(fallback()),
            msg => Self::new(code.unwrap_or(999), msg).details(text("details")),
        }
    }

    /// Adds details.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// Puts what was being done before the message.
    #[must_use]
    pub fn during(mut self, operation: impl std::fmt::Display) -> Self {
        self.msg = format!("{operation}: {}", self.msg);
        self
    }

    /// This error, and another one that came of undoing.
    #[must_use]
    pub fn and_undo(self, undo: Result<(), Self>) -> Self {
        match undo {
            Ok(()) => self,
            Err(second) => Self {
                msg: format!("{}; then, to undo it: {}", self.msg, second.sentence()),
                ..self
            },
        }
    }

    /// The JSON object, in the version of the request if it was known by then.
    pub fn report(&self, version: Option<String>) -> Vec<u8> {
        let version = version.unwrap_or_else(|| Version::NEWEST.name().to_owned());
        let mut report = json!({ "cniVersion": version, "code": self.code, "msg": self.msg });
        if !self.details.is_empty() {
            report["details"] = json!(self.details);
        }
        format!("{report:#}\n").into_bytes()
    }

    fn sentence(&self) -> String {
        if self.details.is_empty() {
            self.msg.clone()
        } else {
            format!("{}: {}", self.msg, self.details)
        }
    }
}

impl From<linux::netlink::Error> for Error {
    fn from(cause: linux::netlink::Error) -> Self {
        Self::failed(cause.to_string())
    }
}

/// All errors of a teardown that went on past each, as one.
pub fn all_of(outcomes: impl IntoIterator<Item = Result<(), Error>>) -> Result<(), Error> {
    let mut errors = outcomes.into_iter().filter_map(Result::err);
    let Some(first) = errors.next() else {
        return Ok(());
    };
    let rest: Vec<String> = errors.map(|error| error.sentence()).collect();
    if rest.is_empty() {
        Err(first)
    } else {
        Err(Error {
            msg: format!("{}; {}", first.msg, rest.join("; ")),
            ..first
        })
    }
}
