//! How pods of other nodes are reached, and whom pods meet with their own addresses: from the flag, or from a file that is
//! read again at SIGHUP.

use anyhow::{Context, anyhow};
use proxy::route::Settings;
use std::path::Path;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::cli;

/// The settings, unless another program takes care of it. With a file they follow it, as long as somebody listens.
///
/// # Errors
/// The file can't be read or says something else; later this is logged, and what holds goes on.
pub fn settings(options: &cli::BetweenNodes) -> anyhow::Result<Option<watch::Receiver<Settings>>> {
    let Some(file) = options.pod_network_config.clone() else {
        let mode = options.pod_network.mode();
        return Ok(mode.map(|mode| watch::channel(mode.into()).1));
    };
    let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    let (settings, receiver) = watch::channel(read(&file)?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                () = settings.closed() => return,
            }
            match read(&file) {
                Ok(wanted) => {
                    tracing::info!(?wanted, "the pod network's settings were read again");
                    settings
                        .send_if_modified(|held| std::mem::replace(held, wanted.clone()) != wanted);
                }
                Err(error) => tracing::error!("{error:#}; the pod network stays as it is"),
            }
        }
    });
    Ok(Some(receiver))
}

fn read(file: &Path) -> anyhow::Result<Settings> {
    let context = || format!("--pod-network-config: read {}", file.display());
    let text = std::fs::read_to_string(file).with_context(context)?;
    Settings::parse(&text)
        .map_err(|error| anyhow!(error))
        .with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use proxy::route::Mode;
    use rustix::process::{Signal, getpid, kill_process};

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        options: cli::BetweenNodes,
    }

    #[tokio::test]
    async fn the_file_is_followed_at_sighup_and_a_wrong_one_changes_nothing() {
        let path = std::env::temp_dir().join(format!("orlop-pod-network-{}", std::process::id()));
        let flags =
            Flags::parse_from(["orlop", "--pod-network-config", &path.display().to_string()]);
        assert!(settings(&flags.options).is_err(), "there is no file");
        let hang_up_with = |text: &str| {
            std::fs::write(&path, text).expect("write");
            kill_process(getpid(), Signal::HUP).expect("signal");
        };
        std::fs::write(&path, "mode: direct").expect("write");
        let mut followed = settings(&flags.options).expect("settings").expect("ours");
        assert_eq!(followed.borrow_and_update().mode, Mode::Direct);
        hang_up_with("mode: vxlan\nnonMasqueradeCIDRs: [192.0.2.0/24]");
        followed.changed().await.expect("a change");
        let held = followed.borrow_and_update().clone();
        assert_eq!(
            (held.mode, held.non_masquerade_cidrs.len()),
            (Mode::Vxlan, 1)
        );
        assert!(read(&path).is_ok());
        std::fs::write(&path, "mode: none").expect("write");
        let error = format!("{:#}", read(&path).expect_err("no such mode"));
        assert!(
            error.contains("none") && error.contains("--pod-network-config"),
            "{error}"
        );
        hang_up_with("mode: none");
        // Nothing is to be seen of a wrong file; the next right one is what comes.
        tokio::task::yield_now().await;
        assert!(!followed.has_changed().expect("followed"));
        hang_up_with("mode: auto");
        followed.changed().await.expect("a change");
        assert_eq!(*followed.borrow(), Settings::default());
        std::fs::remove_file(&path).expect("remove");
    }

    #[test]
    fn the_flag_and_the_file_exclude_each_other() {
        let both = [
            "orlop",
            "--pod-network",
            "vxlan",
            "--pod-network-config",
            "file",
        ];
        assert!(Flags::try_parse_from(both).is_err());
    }
}
