//! How a session ended, as upstream tells it on the error channel: a `metav1.Status`, or plain words before version 4.

use crate::keeper::ExitStatus;
use serde_json::json;

/// The end of an exec, an attach, or a forwarded port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status {
    Success,
    /// The command ended with this code, which isn't 0.
    NonZeroExitCode(i32),
    /// It could not be carried out.
    InternalError(String),
}

impl Status {
    pub(super) fn of_exit(exit: ExitStatus) -> Self {
        match exit.code {
            0 => Status::Success,
            code => Status::NonZeroExitCode(code),
        }
    }

    /// As versions 4 and 5 of the remote command protocol have it.
    pub(super) fn to_json(&self) -> String {
        let status = match self {
            Status::Success => json!({ "metadata": {}, "status": "Success" }),
            Status::NonZeroExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            }),
            Status::InternalError(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": { "causes": [{ "message": message }] },
                "code": 500,
            }),
        };
        status.to_string()
    }

    /// As the versions before have it; nothing for a success.
    pub(super) fn to_text(&self) -> Option<String> {
        match self {
            Status::Success => None,
            Status::NonZeroExitCode(code) => Some(format!(
                "command terminated with non-zero exit code: exit status {code}"
            )),
            Status::InternalError(message) => Some(message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_code_is_told_as_kubectl_reads_it() {
        let status: serde_json::Value =
            serde_json::from_str(&Status::of_exit(ExitStatus::from_wait(7 << 8)).to_json())
                .unwrap();
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(
            status["details"]["causes"][0],
            json!({ "reason": "ExitCode", "message": "7" })
        );
        assert_eq!(
            Status::of_exit(ExitStatus::from_wait(0)).to_json(),
            r#"{"metadata":{},"status":"Success"}"#
        );
    }
}
