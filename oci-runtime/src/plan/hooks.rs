//! `hooks` of a spec (config.md, "POSIX-platform Hooks").

use super::Fd;
use crate::Error;
use oci_spec::runtime::{Hook, Spec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;

/// One program to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HookPlan {
    pub path: PathBuf,
    pub args: Vec<String>,
    /// Without one of its own a hook has the runtime's, and startContainer's the program's, which is known late.
    pub env: Option<Vec<String>>,
    pub timeout_s: Option<u64>,
}

/// The hooks that the container's first process runs itself, and how it waits for those of the runtime.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HooksPlan {
    /// In the container's namespaces, before its root changes.
    pub create_container: Vec<HookPlan>,
    /// In the container, before its program.
    pub start_container: Vec<HookPlan>,
    /// The state that hooks read, but for pid and status.
    pub state: Value,
    /// A socket: the process says that its namespaces are there, and waits until the runtime's hooks have run.
    pub runtime: Option<Fd>,
}

/// Reads a list of hooks.
pub(crate) fn plan_hooks(field: &str, hooks: &Option<Vec<Hook>>) -> Result<Vec<HookPlan>, Error> {
    let plan = |(position, hook): (usize, &Hook)| {
        let field = |name: &str| format!("hooks.{field}[{position}].{name}");
        if !hook.path().is_absolute() {
            return Err(Error::spec(
                field("path"),
                format!("{} is not absolute", hook.path().display()),
            ));
        }
        let timeout = hook.timeout().map(|seconds| {
            u64::try_from(seconds)
                .ok()
                .filter(|seconds| *seconds > 0)
                .ok_or_else(|| Error::spec(field("timeout"), format!("{seconds} is not above 0")))
        });
        Ok(HookPlan {
            path: hook.path().clone(),
            args: hook.args().clone().unwrap_or_default(),
            env: hook.env().clone(),
            timeout_s: timeout.transpose()?,
        })
    };
    hooks.iter().flatten().enumerate().map(plan).collect()
}

/// The state that hooks read, but for pid and status (runtime.md, "State").
pub(crate) fn hook_state(spec: &Spec, id: &str, bundle: &std::path::Path) -> Value {
    json!({
        "ociVersion": spec.version(),
        "id": id,
        "bundle": bundle,
        "annotations": spec.annotations().clone().unwrap_or_default(),
    })
}
