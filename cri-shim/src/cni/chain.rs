//! Runs the plugins of a list, in order (CNI 1.1 §3 and §4).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::conflist::PluginConf;
use super::plugin::Plugins;
use super::{Attachment, AttachmentKey, CniResult, ConfList, Error, PluginFailure};

type Env = BTreeMap<String, String>;

/// Brings `lo` up, as every Kubernetes runtime does before it runs the configured list.
pub(super) fn add_loopback(plugins: &Plugins, attachment: &Attachment) -> Result<(), Error> {
    let list = json!({ "cniVersion": "1.0.0", "name": "cni-loopback", "plugins": [{ "type": "loopback" }] });
    let list = ConfList::parse(&list, Path::new("loopback"))?;
    let loopback = Attachment {
        ifname: "lo".to_owned(),
        ..attachment.clone()
    };
    run_adds(plugins, &list, &loopback).map(drop)
}

/// ADD of the whole list. A failure is followed by DEL of the whole list, so that nothing is left.
pub(super) fn add(
    plugins: &Plugins,
    list: &ConfList,
    attachment: &Attachment,
) -> Result<CniResult, Error> {
    match run_adds(plugins, list, attachment) {
        Ok(result) => Ok(CniResult::read(list, attachment, result)),
        Err(add) => match del(plugins, list, attachment, None) {
            Ok(()) => Err(add),
            Err(undo) => Err(Error::AddAndUndo {
                add: Box::new(add),
                undo: Box::new(undo),
            }),
        },
    }
}

fn run_adds(plugins: &Plugins, list: &ConfList, attachment: &Attachment) -> Result<Value, Error> {
    let env = environment("ADD", plugins, Some(attachment));
    let mut previous: Option<Value> = None;
    for conf in &list.plugins {
        let stdin = configuration(list, conf, Some(attachment), previous.as_ref());
        let stdout = run(plugins, list, conf, "ADD", &env, &stdin)?;
        previous = Some(read_result(list, conf, &stdout)?);
    }
    // A list has at least one plugin.
    Ok(previous.unwrap_or(Value::Null))
}

/// DEL of the whole list, last plugin first, whatever fails on the way.
pub(super) fn del(
    plugins: &Plugins,
    list: &ConfList,
    attachment: &Attachment,
    recorded: Option<&CniResult>,
) -> Result<(), Error> {
    let env = environment("DEL", plugins, Some(attachment));
    let previous = recorded
        .map(|r| &r.result)
        .filter(|_| list.at_least("0.4.0"));
    let del_one = |conf: &PluginConf| {
        let stdin = configuration(list, conf, Some(attachment), previous);
        run(plugins, list, conf, "DEL", &env, &stdin)
    };
    all_of(list.plugins.iter().rev().map(del_one))
}

pub(super) fn check(
    plugins: &Plugins,
    list: &ConfList,
    attachment: &Attachment,
    recorded: &CniResult,
) -> Result<(), Error> {
    if list.disable_check || !list.at_least("0.4.0") {
        return Ok(());
    }
    let env = environment("CHECK", plugins, Some(attachment));
    for conf in &list.plugins {
        let stdin = configuration(list, conf, Some(attachment), Some(&recorded.result));
        run(plugins, list, conf, "CHECK", &env, &stdin)?;
    }
    Ok(())
}

pub(super) fn gc(plugins: &Plugins, list: &ConfList, valid: &[AttachmentKey]) -> Result<(), Error> {
    if list.disable_gc || !list.at_least("1.1.0") {
        return Ok(());
    }
    let env = environment("GC", plugins, None);
    all_of(list.plugins.iter().map(|conf| {
        let mut request = request(list, conf, None, None);
        // The first name is the one that libcni's releases and so the plugins go by, the second the specification's.
        request.insert("cni.dev/valid-attachments".to_owned(), json!(valid));
        request.insert("cni.dev/attachments".to_owned(), json!(valid));
        run(plugins, list, conf, "GC", &env, &encode(request))
    }))
}

pub(super) fn status(plugins: &Plugins, list: &ConfList) -> Result<(), Error> {
    if !list.at_least("1.1.0") {
        return list
            .plugins
            .iter()
            .try_for_each(|conf| plugins.ensure_exists(&conf.plugin));
    }
    let env = environment("STATUS", plugins, None);
    for conf in &list.plugins {
        run(
            plugins,
            list,
            conf,
            "STATUS",
            &env,
            &configuration(list, conf, None, None),
        )?;
    }
    Ok(())
}

fn all_of(outcomes: impl Iterator<Item = Result<Vec<u8>, Error>>) -> Result<(), Error> {
    let errors: Vec<Error> = outcomes.filter_map(Result::err).collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Teardown(errors))
    }
}

/// The `CNI_*` environment (CNI 1.1 §2, Parameters). A namespace that is gone is given as an empty path, so
/// that a plugin cleans up what is outside it and succeeds.
fn environment(command: &str, plugins: &Plugins, attachment: Option<&Attachment>) -> Env {
    let dirs: Vec<_> = plugins
        .bin_dirs
        .iter()
        .map(|dir| dir.to_string_lossy())
        .collect();
    let mut env = Env::from([
        ("CNI_COMMAND".to_owned(), command.to_owned()),
        ("CNI_PATH".to_owned(), dirs.join(":")),
    ]);
    if let Some(attachment) = attachment {
        let gone = command == "DEL" && !attachment.netns.exists();
        let netns = if gone {
            String::new()
        } else {
            attachment.netns.to_string_lossy().into_owned()
        };
        env.insert(
            "CNI_CONTAINERID".to_owned(),
            attachment.container_id.clone(),
        );
        env.insert("CNI_NETNS".to_owned(), netns);
        env.insert("CNI_IFNAME".to_owned(), attachment.ifname.clone());
        env.insert("CNI_ARGS".to_owned(), attachment.cni_args());
    }
    env
}

/// What a plugin reads on standard input (CNI 1.1 §3, Deriving request configuration).
fn configuration(
    list: &ConfList,
    conf: &PluginConf,
    attachment: Option<&Attachment>,
    previous: Option<&Value>,
) -> Vec<u8> {
    encode(request(list, conf, attachment, previous))
}

fn request(
    list: &ConfList,
    conf: &PluginConf,
    attachment: Option<&Attachment>,
    previous: Option<&Value>,
) -> Map<String, Value> {
    let mut request = conf.raw.clone();
    let declared = request.remove("capabilities");
    request.insert("cniVersion".to_owned(), json!(list.cni_version));
    request.insert("name".to_owned(), json!(list.name));
    if let Some(previous) = previous {
        request.insert("prevResult".to_owned(), previous.clone());
    }
    let declared = declared.as_ref().and_then(Value::as_object);
    if let (Some(declared), Some(attachment)) = (declared, attachment) {
        let args = attachment
            .capability_args
            .iter()
            .filter(|(name, _)| declared.get(*name) == Some(&json!(true)));
        let args: Map<String, Value> = args
            .map(|(name, argument)| (name.clone(), argument.clone()))
            .collect();
        if !args.is_empty() {
            request.insert("runtimeConfig".to_owned(), Value::Object(args));
        }
    }
    request
}

fn encode(request: Map<String, Value>) -> Vec<u8> {
    Value::Object(request).to_string().into_bytes()
}

/// Runs one plugin and returns what it printed; its error object becomes [`Error::Plugin`].
fn run(
    plugins: &Plugins,
    list: &ConfList,
    conf: &PluginConf,
    command: &'static str,
    env: &Env,
    stdin: &[u8],
) -> Result<Vec<u8>, Error> {
    let output = plugins.run(&conf.plugin, env, stdin)?;
    if output.code == 0 {
        return Ok(output.stdout);
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = |key: &str| {
        report
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut msg = text("msg");
    if msg.is_empty() {
        let printed = String::from_utf8_lossy(&output.stdout);
        msg = format!(
            "exit status {} without a reason: {}",
            output.code,
            printed.trim()
        );
    }
    Err(Error::Plugin(Box::new(PluginFailure {
        plugin: conf.plugin.clone(),
        network: list.name.clone(),
        command,
        code: report
            .get("code")
            .and_then(Value::as_u64)
            .unwrap_or_default(),
        msg,
        details: text("details"),
    })))
}

/// A result without a version is in the version of the request (plugins of 0.1.0 do not state one).
fn read_result(list: &ConfList, conf: &PluginConf, stdout: &[u8]) -> Result<Value, Error> {
    let bad = |reason: String| Error::Result {
        plugin: conf.plugin.clone(),
        reason,
    };
    let mut result: Value =
        serde_json::from_slice(stdout).map_err(|cause| bad(cause.to_string()))?;
    let Some(object) = result.as_object_mut() else {
        return Err(bad("not a JSON object".to_owned()));
    };
    let unversioned = object
        .get("cniVersion")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty);
    if unversioned {
        object.insert("cniVersion".to_owned(), json!(list.cni_version));
    }
    Ok(result)
}
