//! `config.json` and process documents, read as other runtimes read them.
//!
//! The typed form is stricter than they are: it knows each capability by name, and wants a process to have a user.
//! What it refuses is looked at once more without types, made to fit where others only warn, and named where it is wrong.

use oci_spec::runtime::{Capability, Process, Spec};
use serde::de::{DeserializeOwned, Error as _};
use serde_json::{Error, Value, json};

/// Reads a whole `config.json` (runtime-spec config.md).
///
/// # Errors
/// What is malformed, with its place.
pub(crate) fn parse_spec(text: &[u8]) -> Result<Spec, Error> {
    parse(text, |document| {
        if let Some(process) = document.get_mut("process") {
            complete_process(process);
        }
        check_memory_policy(document.pointer("/linux/memoryPolicy"))
    })
}

/// Reads a `process` alone, as `exec --process` is given.
///
/// # Errors
/// What is malformed, with its place.
pub(crate) fn parse_process(text: &[u8]) -> Result<Process, Error> {
    parse(text, |document| {
        complete_process(document);
        Ok(())
    })
}

fn parse<T: DeserializeOwned>(
    text: &[u8],
    complete: impl FnOnce(&mut Value) -> Result<(), Error>,
) -> Result<T, Error> {
    let refused = match serde_json::from_slice(text) {
        Ok(parsed) => return Ok(parsed),
        Err(refused) => refused,
    };
    let mut document: Value = serde_json::from_slice(text)?;
    let before = document.clone();
    complete(&mut document)?;
    if document == before {
        // The first error knows the line.
        return Err(refused);
    }
    serde_json::from_value(document)
}

/// Gives a process without a user root's ids, spells its flags as the typed form does, and takes out capabilities that
/// no kernel has.
fn complete_process(process: &mut Value) {
    let Some(process) = process.as_object_mut() else {
        return;
    };
    process
        .entry("user")
        .or_insert_with(|| json!({"uid": 0, "gid": 0}));
    let flags = process
        .get_mut("scheduler")
        .and_then(|scheduler| scheduler.get_mut("flags"))
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        // The typed form has this one flag without its second word.
        if *flag == "SCHED_FLAG_RESET_ON_FORK" {
            *flag = json!("SCHED_RESET_ON_FORK");
        }
    }
    let mut unknown = Vec::new();
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for set in sets
        .into_iter()
        .flat_map(|sets| sets.values_mut())
        .filter_map(Value::as_array_mut)
    {
        set.retain(|name| {
            let known = name.as_str().is_none_or(|name| {
                name.strip_prefix("CAP_")
                    .unwrap_or(name)
                    .parse::<Capability>()
                    .is_ok()
            });
            if !known && !unknown.contains(name) {
                unknown.push(name.clone());
            }
            known
        });
    }
    if !unknown.is_empty() {
        let names: Vec<&str> = unknown.iter().filter_map(Value::as_str).collect();
        tracing::warn!(
            "ignoring unknown or unavailable capabilities: [{}]",
            names.join(" ")
        );
    }
}

/// Names what is wrong with a memory policy that has no typed form.
fn check_memory_policy(policy: Option<&Value>) -> Result<(), Error> {
    let Some(policy) = policy else { return Ok(()) };
    let known = |text: &str, kind: &str| {
        let document = match kind {
            "mode" => json!({ "mode": text }),
            _ => json!({ "mode": "MPOL_DEFAULT", "flags": [text] }),
        };
        serde_json::from_value::<oci_spec::runtime::LinuxMemoryPolicy>(document).is_ok()
    };
    let mode = policy.get("mode").and_then(Value::as_str).unwrap_or("");
    if !known(mode, "mode") {
        return Err(Error::custom(format!(
            "linux.memoryPolicy.mode: invalid memory policy mode {mode:?}"
        )));
    }
    let flags = policy.get("flags").and_then(Value::as_array);
    for flag in flags.into_iter().flatten().filter_map(Value::as_str) {
        if !known(flag, "flags") {
            return Err(Error::custom(format!(
                "linux.memoryPolicy.flags: invalid memory policy flag {flag:?}"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_user_is_roots_and_unknown_capabilities_are_left_out() {
        let process = parse_process(
            br#"{"cwd": "/", "args": ["true"],
                "capabilities": {"bounding": ["CAP_CHOWN", "CAP_FLYING"], "effective": ["CAP_FLYING"]}}"#,
        )
        .unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        let sets = process.capabilities().as_ref().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 1);
        assert!(sets.effective().as_ref().unwrap().is_empty());
    }

    #[test]
    fn a_scheduler_resets_on_fork_by_the_specifications_name() {
        let text = br#"{"cwd": "/", "args": ["true"], "user": {"uid": 0, "gid": 0},
            "scheduler": {"policy": "SCHED_BATCH", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}}"#;
        let process = parse_process(text).unwrap();
        let flags = process.scheduler().as_ref().unwrap().flags();
        assert_eq!(
            flags.as_deref(),
            Some(&[oci_spec::runtime::LinuxSchedulerFlag::SchedResetOnFork][..])
        );
    }

    #[test]
    fn a_memory_policy_is_refused_by_what_is_wrong_with_it() {
        for (policy, told) in [
            (json!({}), "invalid memory policy mode \"\""),
            (
                json!({"mode": "INTERLEAVE"}),
                "invalid memory policy mode \"INTERLEAVE\"",
            ),
            (
                json!({"mode": "MPOL_BIND", "flags": ["bad"]}),
                "invalid memory policy flag \"bad\"",
            ),
        ] {
            let text =
                json!({"ociVersion": "1.3.0", "linux": {"memoryPolicy": policy}}).to_string();
            let error = parse_spec(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn what_is_malformed_is_told_with_its_line() {
        let error = parse_spec(b"{\n\"ociVersion\": 3\n}").unwrap_err();
        assert_eq!(error.line(), 2);
    }
}
