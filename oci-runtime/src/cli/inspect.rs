//! `state`, `list`, `ps`.

use super::{Context, Failure, Outcome};
use crate::state::{Container, Status};
use serde_json::{Value, json};
use std::collections::HashSet;

/// runtime-spec runtime.md ("State"), with what runc adds.
fn describe(container: &Container) -> Value {
    let record = &container.record;
    let status = container.status();
    let pid = if status == Status::Stopped {
        0
    } else {
        record.pid
    };
    json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": pid,
        "status": status.to_string(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "annotations": record.annotations,
        "owner": owner_name(record.owner),
    })
}

fn owner_name(uid: u32) -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| format!("#{uid}"), |user| user.name)
}

pub(super) fn state(context: &Context, id: &str) -> Outcome {
    let container = Container::open(&context.root, id)?;
    let mut value = describe(&container);
    if let Value::Object(map) = &mut value {
        map.remove("owner");
        map.insert("owner".to_owned(), json!(""));
    }
    print_json(&value)?;
    Ok(0)
}

pub(super) fn list(context: &Context, format: &str, quiet: bool) -> Outcome {
    if context.root_given && !context.root.exists() {
        return Err(Failure::other(format!(
            "--root {}: no such directory",
            context.root.display()
        )));
    }
    let mut containers = Vec::new();
    for id in Container::ids(&context.root)? {
        // One that is removed at this moment is not listed.
        if let Ok(container) = Container::open(&context.root, &id) {
            containers.push(container);
        }
    }
    if quiet {
        for container in &containers {
            println!("{}", container.record.id);
        }
        return Ok(0);
    }
    match format {
        "json" => println!(
            "{}",
            Value::Array(containers.iter().map(describe).collect())
        ),
        "table" => print_table(&containers.iter().map(describe).collect::<Vec<_>>()),
        other => return Err(Failure::other(format!("invalid format option {other:?}"))),
    }
    Ok(0)
}

fn print_table(rows: &[Value]) {
    const COLUMNS: [(&str, &str); 6] = [
        ("ID", "id"),
        ("PID", "pid"),
        ("STATUS", "status"),
        ("BUNDLE", "bundle"),
        ("CREATED", "created"),
        ("OWNER", "owner"),
    ];
    let text = |row: &Value, key: &str| match row.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let widths: Vec<usize> = COLUMNS
        .iter()
        .map(|(title, key)| {
            rows.iter()
                .map(|row| text(row, key).len())
                .chain([title.len(), 11])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let print = |cells: Vec<String>| {
        let line: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        println!("{}", line.join(" ").trim_end());
    };
    print(
        COLUMNS
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect(),
    );
    for row in rows {
        print(COLUMNS.iter().map(|(_, key)| text(row, key)).collect());
    }
}

pub(super) fn ps(context: &Context, format: &str, id: &str, options: &[String]) -> Outcome {
    let container = Container::open(&context.root, id)?;
    let pids = match container.cgroup()? {
        Some(cgroup) => cgroup.processes()?,
        None => Vec::new(),
    };
    if format == "json" {
        println!("{}", json!(pids));
        return Ok(0);
    }
    if format != "table" {
        return Err(Failure::other(format!("invalid format option {format:?}")));
    }
    print_processes(&pids, options)?;
    Ok(0)
}

/// The lines of the host's `ps` that are about these processes, as runc shows them: its options are the user's.
fn print_processes(pids: &[i32], options: &[String]) -> Result<(), Failure> {
    let options = if options.is_empty() {
        vec!["-ef".to_owned()]
    } else {
        options.to_vec()
    };
    let output = std::process::Command::new("ps")
        .args(&options)
        .output()
        .map_err(|error| Failure::other(format!("run ps: {error}")))?;
    if !output.status.success() {
        return Err(Failure::other(format!(
            "ps: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let Some(title) = lines.next() else {
        return Ok(());
    };
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Failure::other("couldn't find PID field in ps output"))?;
    println!("{title}");
    let pids: HashSet<i32> = pids.iter().copied().collect();
    for line in lines {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|text| text.parse().ok());
        if pid.is_some_and(|pid| pids.contains(&pid)) {
            println!("{line}");
        }
    }
    Ok(())
}

fn print_json(value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Failure::other(format!("print: {error}")))?;
    println!("{text}");
    Ok(())
}
