//! `exec`.

use super::args::ExecArgs;
use super::{Context, Failure, Outcome, console, create, foreground, resctrl, rootless};
use crate::document::parse_process;
use crate::launch::Stdio;
use crate::plan::{ExecTarget, plan_exec_below, session_keyring};
use crate::state::{Container, StateError, Status, write_whole};
use oci_spec::runtime::{Capability, Process, Spec, User};
use std::collections::BTreeMap;
use std::path::PathBuf;

pub(super) fn exec(context: &Context, args: &ExecArgs) -> Outcome {
    let container = Container::open(&context.root, &args.id)?;
    match container.status() {
        Status::Running | Status::Created => {}
        Status::Paused if args.ignore_paused => {}
        Status::Paused => {
            return Err(Failure::other(
                "cannot exec in a paused container (use --ignore-paused to override)",
            ));
        }
        Status::Stopped => return Err(Failure::other("cannot exec in a stopped container")),
        Status::Creating => {
            return Err(Failure::other(
                "cannot exec in a container that is being created",
            ));
        }
    }
    let pidfd = container
        .process()
        .ok_or_else(|| Failure::other("cannot exec in a stopped container"))?;
    rootless::join(container.record.pid, &pidfd)?;
    let spec = container.spec()?;
    let process = plan_spec(args, &spec)?;
    let terminal = process.terminal().unwrap_or(false);
    console::check(terminal, args.detach, args.console_socket.as_deref())?;
    let cgroup_below = parse_cgroups(&args.cgroup)?;
    let target = ExecTarget {
        pid: container.record.pid,
        pidfd,
        cgroup: container.cgroup()?,
        linux: spec.linux().clone(),
        keyring: (!container.record.keeps_keyring).then(|| session_keyring(&container.record.id)),
        preserve_fds: args.preserve_fds,
        resctrl: resctrl::join(&spec, &container.record.id)?,
    };
    let (plan, fds) = plan_exec_below(&process, target, &cgroup_below)?;
    let signals = if args.detach {
        None
    } else {
        Some(foreground::block_signals()?)
    };
    let stdio = if terminal {
        Stdio::Terminal {
            size: None,
            relayed: !args.detach,
        }
    } else {
        console::own_streams()?
    };
    let mut launched = crate::exec(&plan, fds, stdio)?;
    tracing::debug!(
        pid = launched.pid,
        "started a process in container {}",
        args.id
    );
    if let Some(path) = &args.pid_file {
        write_whole(path, launched.pid.to_string().as_bytes())?;
    }
    if let (Some(path), Some(master)) = (&args.console_socket, &launched.terminal) {
        console::hand_over(path, master, b"/dev/ptmx")?;
        launched.terminal = None;
    }
    if let Some(path) = &args.pidfd_socket {
        console::hand_over(path, &launched.pidfd, b"pidfd")?;
    }
    create::wait_status(&launched.status)?;
    match signals {
        Some(signals) => foreground::follow(&launched.pidfd, launched.terminal, signals),
        None => Ok(0),
    }
}

/// The process to run: a file's, or the container's own with the command line's changes.
fn plan_spec(args: &ExecArgs, spec: &Spec) -> Result<Process, Failure> {
    if let Some(path) = &args.process {
        let text = std::fs::read(path)
            .map_err(|error| Failure::other(format!("read {}: {error}", path.display())))?;
        let mut process = parse_process(&text).map_err(|cause| StateError::Malformed {
            path: path.clone(),
            cause,
        })?;
        if args.tty {
            process.set_terminal(Some(true));
        }
        return Ok(process);
    }
    let mut process = spec
        .process()
        .clone()
        .ok_or_else(|| Failure::other("the container's config.json has no process"))?;
    if args.command.is_empty() {
        return Err(Failure::other("process args cannot be empty"));
    }
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(PathBuf::from(cwd));
    }
    let mut env = process.env().clone().unwrap_or_default();
    env.extend(args.env.iter().cloned());
    process.set_env(Some(env));
    if let Some(user) = &args.user {
        process.set_user(parse_user(user, process.user())?);
    }
    if !args.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&args.additional_gids);
        user.set_additional_gids(Some(gids));
        process.set_user(user);
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if args.apparmor.is_some() {
        process.set_apparmor_profile(args.apparmor.clone());
    }
    if args.process_label.is_some() {
        process.set_selinux_label(args.process_label.clone());
    }
    add_capabilities(&mut process, &args.cap)?;
    Ok(process)
}

/// `--cgroup`: one path for all controllers, or each with the names of those that it is for (`cpu,cpuacct:path`).
fn parse_cgroups(words: &[String]) -> Result<BTreeMap<String, String>, Failure> {
    let bad = |word: &str, why: String| {
        Failure::other(format!("invalid --cgroup argument: {word} ({why})"))
    };
    let mut below = BTreeMap::new();
    for word in words {
        let (names, path) = word.split_once(':').unwrap_or(("", word));
        if path.split('/').any(|part| part == "..") {
            return Err(bad(
                word,
                "bad sub cgroup path: '..' leaves the container's".to_owned(),
            ));
        }
        let all = !word.contains(':');
        if all && words.len() > 1 {
            return Err(bad(word, "missing <controller>: prefix".to_owned()));
        }
        for name in names.split(',') {
            if name.is_empty() && !all {
                return Err(bad(word, "empty <controller> prefix".to_owned()));
            }
            if below.insert(name.to_owned(), path.to_owned()).is_some() {
                return Err(bad(
                    word,
                    format!("controller {name} specified multiple times"),
                ));
            }
        }
    }
    Ok(below)
}

fn parse_user(text: &str, before: &User) -> Result<User, Failure> {
    let (uid, gid) = text
        .split_once(':')
        .map_or((text, None), |(uid, gid)| (uid, Some(gid)));
    let number = |id: &str| {
        id.parse::<u32>()
            .map_err(|_| Failure::other(format!("--user {text:?}: not UID[:GID]")))
    };
    let mut user = before.clone();
    user.set_uid(number(uid)?);
    if let Some(gid) = gid {
        user.set_gid(number(gid)?);
    }
    Ok(user)
}

fn add_capabilities(process: &mut Process, names: &[String]) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    let mut sets = process.capabilities().clone().unwrap_or_default();
    for name in names {
        let bare = name.to_ascii_uppercase();
        let bare = bare.strip_prefix("CAP_").unwrap_or(&bare);
        let capability: Capability = bare
            .parse()
            .map_err(|_| Failure::other(format!("--cap {name:?}: no such capability")))?;
        let add = |set: &Option<oci_spec::runtime::Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.insert(capability);
            Some(set)
        };
        let (bounding, effective) = (add(sets.bounding()), add(sets.effective()));
        // Ambient it becomes only if the container's processes could inherit it already.
        let (permitted, ambient) = (add(sets.permitted()), add(sets.ambient()));
        sets.set_bounding(bounding);
        sets.set_effective(effective);
        sets.set_permitted(permitted);
        sets.set_ambient(ambient);
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Vec<(String, String)>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse_cgroups(&words)
            .map(|below| below.into_iter().collect())
            .map_err(|failure| failure.to_string())
    }

    #[test]
    fn cgroups_are_one_path_or_one_for_each_controller() {
        let pair = |name: &str, path: &str| (name.to_owned(), path.to_owned());
        assert_eq!(parse(&[]).unwrap(), []);
        assert_eq!(parse(&["a/b"]).unwrap(), [pair("", "a/b")]);
        assert_eq!(
            parse(&["memory:m", "cpu,cpuacct:c"]).unwrap(),
            [pair("cpu", "c"), pair("cpuacct", "c"), pair("memory", "m")]
        );
        for (words, told) in [
            (&["a", "b"][..], "missing <controller>: prefix"),
            (&[":a"], "empty <controller> prefix"),
            (&["cpu:a", "cpu:b"], "cpu specified multiple times"),
            (&["cpu:a/../../b"], "bad sub cgroup path"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(told), "{words:?}: {error}");
        }
    }
}
