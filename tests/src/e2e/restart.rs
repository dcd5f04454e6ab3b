//! kill -9 of `orlop up`: the containers go on, and the next `up` takes them over.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::kubectl::{eventually, load_image, manifest};
use crate::cluster::Cluster;
use crate::tally::Outcome;

/// Kills it in the middle of things, several times.
pub fn restart(program: &Path) -> anyhow::Result<Outcome> {
    let mut cluster = Cluster::start(program, "restart", true)?;
    load_image(&cluster, program)?;
    cluster.kubectl_with(
        &["apply", "-f", "-"],
        &manifest("ticker", 2, &["count", "10"]),
    )?;
    cluster.kubectl(&["rollout", "status", "deployment/ticker", "--timeout=60s"])?;
    let before = pods(&cluster)?;
    for round in 0..3 {
        for write in 0..20 {
            cluster.kubectl(&[
                "create",
                "configmap",
                &format!("write-{round}-{write}"),
                "--from-literal=a=b",
            ])?;
        }
        cluster.kill()?;
        std::thread::sleep(Duration::from_millis(300));
        cluster.spawn()?;
        let maps = cluster.kubectl(&["get", "configmaps", "-o", "name"])?;
        for write in 0..20 {
            let name = format!("configmap/write-{round}-{write}");
            ensure!(
                maps.lines().any(|line| line == name),
                "{name} was acknowledged, and is lost"
            );
        }
    }
    cluster.kubectl(&["rollout", "status", "deployment/ticker", "--timeout=60s"])?;
    ensure!(
        pods(&cluster)? == before,
        "pods changed: {before:?} became {:?}",
        pods(&cluster)?
    );
    eventually("pods are ready again", || {
        let ready = cluster.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=ticker",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[0].ready}",
        ])?;
        Ok(ready == "true true")
    })?;
    complete_logs(&cluster)?;
    cluster.stop()?;
    let mut last = Cluster::resume(program, cluster.root())?;
    last.kubectl(&[
        "delete",
        "deployment",
        "ticker",
        "--cascade=foreground",
        "--timeout=60s",
    ])?;
    last.stop()?;
    std::fs::remove_dir_all(cluster.root()).context("remove the cluster's folder")?;
    Ok(Outcome::Passed)
}

/// Each pod's name, container id, restarts and start time.
fn pods(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let list: Value = serde_json::from_str(&cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=ticker",
        "-o",
        "json",
    ])?)?;
    let items = list["items"].as_array().context("no items")?;
    let mut lines: Vec<String> = items
        .iter()
        .map(|pod| {
            let status = &pod["status"]["containerStatuses"][0];
            format!(
                "{} {} {} {}",
                pod["metadata"]["name"],
                status["containerID"],
                status["restartCount"],
                status["state"]["running"]["startedAt"]
            )
        })
        .collect();
    lines.sort();
    Ok(lines)
}

/// The ticker counts: no number may be missing in its log, and none may be there twice.
fn complete_logs(cluster: &Cluster) -> anyhow::Result<()> {
    let names = cluster.kubectl(&["get", "pods", "-l", "app=ticker", "-o", "name"])?;
    for name in names.lines() {
        let log = cluster.kubectl(&["logs", name])?;
        let numbers: Vec<u64> = log.lines().filter_map(|line| line.parse().ok()).collect();
        ensure!(
            numbers.len() > 50,
            "{name} logged only {} numbers",
            numbers.len()
        );
        for (at, number) in numbers.iter().enumerate() {
            ensure!(
                u64::try_from(at)? == *number,
                "line {at} of the log of {name} is {number}"
            );
        }
    }
    Ok(())
}
