//! The first process: its command, environment, user and privileges.

use cri_api::v1::{ContainerConfig, LinuxContainerSecurityContext, security_profile::ProfileType};
use oci_spec::runtime::{Process, User as OciUser};

use super::{Error, Inputs, User, capabilities};
use crate::image::Execution;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn container(
    inputs: &Inputs<'_>,
    security: &LinuxContainerSecurityContext,
) -> Result<Process, Error> {
    let config = inputs.config;
    let mut process = Process::default();
    process.set_terminal(Some(config.tty));
    process.set_args(Some(args(config, inputs.image)?));
    process.set_env(Some(environment(inputs)));
    process.set_cwd(working_dir(config, inputs.image).into());
    process.set_user(oci_user(inputs.user));
    process.set_capabilities(Some(capabilities::container(security)?));
    process.set_no_new_privileges(Some(security.no_new_privs));
    process.set_rlimits(None);
    process.set_apparmor_profile(apparmor(security));
    let resources = config
        .linux
        .as_ref()
        .and_then(|linux| linux.resources.as_ref());
    let score = resources.map_or(0, |resources| resources.oom_score_adj);
    let score = i32::try_from(score)
        .ok()
        .filter(|score| (-1000..=1000).contains(score));
    process.set_oom_score_adj(Some(score.ok_or_else(|| {
        Error::invalid("resources.oom_score_adj", "must be -1000 to 1000")
    })?));
    Ok(process)
}

/// Another process in a running container: the container's own, with another command (CRI Exec).
pub fn exec(container: &Process, command: &[String], tty: bool) -> Result<Process, Error> {
    if command.is_empty() {
        return Err(Error::invalid("cmd", "an exec needs a command"));
    }
    let mut process = container.clone();
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(tty));
    process.set_console_size(None);
    let terminal = "TERM=xterm";
    if tty
        && let Some(env) = process.env_mut()
        && !env.iter().any(|entry| entry.starts_with("TERM="))
    {
        env.push(terminal.to_owned());
    }
    Ok(process)
}

/// The command: the request's replaces the image's entrypoint and with it the image's arguments.
fn args(config: &ContainerConfig, image: &Execution) -> Result<Vec<String>, Error> {
    let (command, args) = if config.command.is_empty() {
        let args = if config.args.is_empty() {
            &image.cmd
        } else {
            &config.args
        };
        (&image.entrypoint, args)
    } else {
        (&config.command, &config.args)
    };
    let line: Vec<String> = command.iter().chain(args).cloned().collect();
    if line.is_empty() {
        Err(Error::NoCommand)
    } else {
        Ok(line)
    }
}

fn working_dir<'a>(config: &'a ContainerConfig, image: &'a Execution) -> &'a str {
    [config.working_dir.as_str(), image.working_dir.as_str()]
        .into_iter()
        .find(|dir| !dir.is_empty())
        .unwrap_or("/")
}

/// Later entries win: defaults, the image's, the request's. Values are bytes in CRI and text in OCI.
fn environment(inputs: &Inputs<'_>) -> Vec<String> {
    let mut env: Vec<String> = vec![PATH.to_owned()];
    let mut set = |entry: String| {
        let name = entry.split('=').next().unwrap_or_default().to_owned();
        match env
            .iter_mut()
            .find(|old| old.split('=').next() == Some(&name))
        {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    };
    if inputs.config.tty {
        set("TERM=xterm".into());
    }
    if !inputs.sandbox.hostname.is_empty() {
        set(format!("HOSTNAME={}", inputs.sandbox.hostname));
    }
    set(format!("HOME={}", inputs.user.home));
    for entry in &inputs.image.env {
        set(entry.clone());
    }
    for entry in &inputs.config.envs {
        set(format!(
            "{}={}",
            entry.key,
            String::from_utf8_lossy(&entry.value)
        ));
    }
    env
}

fn oci_user(user: &User) -> OciUser {
    let mut oci = OciUser::default();
    oci.set_uid(user.uid);
    oci.set_gid(user.gid);
    oci.set_additional_gids((!user.groups.is_empty()).then(|| user.groups.clone()));
    oci
}

fn apparmor(security: &LinuxContainerSecurityContext) -> Option<String> {
    let profile = security.apparmor.as_ref()?;
    (profile.profile_type() == ProfileType::Localhost && !security.privileged).then(|| {
        profile
            .localhost_ref
            .trim_start_matches("localhost/")
            .to_owned()
    })
}
