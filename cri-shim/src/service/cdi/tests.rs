//! Vendors' files as they are found, and what they make of a specification.

use cri_api::v1::CdiDevice;

use super::*;

const GPU: &str = r#"{
  "cdiVersion": "0.6.0",
  "kind": "vendor.com/gpu",
  "containerEdits": {
    "env": ["DRIVER=on", "PATH=/gpu"],
    "additionalGids": [0, 44],
    "hooks": [{"hookName": "startContainer", "path": "/usr/bin/hook", "args": ["hook", "links"], "timeout": 3}]
  },
  "devices": [
    {"name": "0", "containerEdits": {
      "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"}],
      "mounts": [{"hostPath": "/lib/gpu", "containerPath": "/usr/lib/gpu", "options": ["ro", "nosuid"]}]
    }},
    {"name": "1", "containerEdits": {
      "deviceNodes": [{"path": "/dev/gpu1", "type": "c", "major": 240, "minor": 1, "fileMode": 432, "gid": 44}]
    }}
  ]
}"#;

/// Folders of files, in order; each file is a name and its text.
fn folders(dir: &Path, files: &[&[(&str, &str)]]) -> Vec<PathBuf> {
    let each = files.iter().enumerate().map(|(position, files)| {
        let folder = dir.join(position.to_string());
        std::fs::create_dir(&folder).unwrap();
        for (name, text) in *files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        folder
    });
    each.chain([dir.join("not there")]).collect()
}

fn asking(names: &[&str]) -> ContainerConfig {
    let device = |name: &&str| CdiDevice {
        name: (*name).to_owned(),
    };
    ContainerConfig {
        cdi_devices: names.iter().map(device).collect(),
        ..Default::default()
    }
}

fn injected(files: &[&[(&str, &str)]], config: &ContainerConfig) -> Result<Spec, Error> {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = Spec::default();
    let process = spec.process_mut().as_mut().unwrap();
    process.set_env(Some(vec!["PATH=/bin".into(), "A=1".into()]));
    process.user_mut().set_uid(1000);
    inject(&folders(dir.path(), files), config, &mut spec)?;
    Ok(spec)
}

#[test]
fn a_device_brings_its_nodes_mounts_environment_groups_and_hooks() {
    let spec = injected(
        &[&[("gpu.json", GPU)]],
        &asking(&["vendor.com/gpu=0", "vendor.com/gpu=1"]),
    )
    .unwrap();
    let process = spec.process().as_ref().unwrap();
    assert_eq!(
        process.env().as_ref().unwrap()[..],
        ["A=1", "DRIVER=on", "PATH=/gpu"]
    );
    assert_eq!(process.user().additional_gids(), &Some(vec![44]));
    let linux = spec.linux().as_ref().unwrap();
    let shown: Vec<_> = linux
        .devices()
        .iter()
        .flatten()
        .map(|device| {
            let path = device.path().display().to_string();
            let numbers = (device.major(), device.minor());
            (path, numbers, device.uid(), device.gid())
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("/dev/gpu0".into(), (1, 3), Some(1000), Some(0)),
            ("/dev/gpu1".into(), (240, 1), Some(1000), Some(44))
        ]
    );
    assert_eq!(
        linux.devices().as_ref().unwrap()[1].file_mode(),
        Some(0o660)
    );
    let rules: Vec<_> = linux
        .resources()
        .as_ref()
        .unwrap()
        .devices()
        .iter()
        .flatten()
        .collect();
    let access = |major| {
        let rule = rules.iter().find(|rule| rule.major() == Some(major));
        rule.unwrap().access().clone().unwrap()
    };
    assert_eq!([access(1), access(240)], ["rw", "rwm"]);
    let mounts = spec.mounts().as_ref().unwrap();
    let depths: Vec<_> = mounts
        .iter()
        .map(|mount| mount.destination().components().count())
        .collect();
    assert!(depths.is_sorted(), "{depths:?}");
    let mount = mounts
        .iter()
        .find(|mount| mount.destination() == Path::new("/usr/lib/gpu"))
        .unwrap();
    assert_eq!(mount.typ().as_deref(), Some("bind"));
    assert_eq!(
        mount.options().as_ref().unwrap()[..],
        ["ro", "nosuid", "rbind"]
    );
    // Once, though two devices of the file are used.
    let hooks = spec
        .hooks()
        .as_ref()
        .unwrap()
        .start_container()
        .as_ref()
        .unwrap();
    assert_eq!(hooks.len(), 1);
    assert_eq!(hooks[0].timeout(), Some(3));
}

#[test]
fn annotations_name_devices_too_and_each_counts_once() {
    let mut config = asking(&["a/b=x"]);
    config
        .annotations
        .insert("cdi.k8s.io/plugin".into(), "a/b=y, a/b=x".into());
    config.annotations.insert("other".into(), "a/b=z".into());
    assert_eq!(asked(&config), ["a/b=x", "a/b=y"]);
}

#[test]
fn yaml_is_read_and_a_later_folder_wins() {
    let with = |value: &str| {
        format!(
            "cdiVersion: 1.0.0\nkind: v.com/net\ndevices:\n- name: a\n  containerEdits:\n    env: [\"FROM={value}\"]\n"
        )
    };
    let (first, second) = (with("first"), with("second"));
    let files: &[&[(&str, &str)]] = &[
        &[("a.yaml", &first), ("notes.txt", "nothing")],
        &[("a.yaml", &second)],
    ];
    let spec = injected(files, &asking(&["v.com/net=a"])).unwrap();
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    assert_eq!(env.last().unwrap(), "FROM=second");
    let same: &[&[(&str, &str)]] = &[&[("a.yaml", &first), ("b.yaml", &second)]];
    let error = injected(same, &asking(&["v.com/net=a"])).unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
}

#[test]
fn what_cant_be_given_is_named() {
    let says = |files: &[&[(&str, &str)]], name: &str| {
        injected(files, &asking(&[name])).unwrap_err().to_string()
    };
    for name in ["gpu", "vendor.com/gpu", "=0", "vendor.com/gpu=", "/gpu=0"] {
        assert!(says(&[], name).contains("vendor/class=name"), "{name}");
    }
    let error = says(
        &[&[("bad.json", "{\"cdiVersion\": 3"), ("gpu.json", GPU)]],
        "vendor.com/gpu=7",
    );
    assert!(
        error.contains("vendor.com/gpu=7") && error.contains("bad.json"),
        "{error}"
    );
    let edit = |edits: &str| {
        format!(
            r#"{{"cdiVersion": "1.1.0", "kind": "v/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
        )
    };
    for (edits, part) in [
        (r#"{"intelRdt": {"closID": "x"}}"#, "intelRdt"),
        (
            r#"{"hooks": [{"hookName": "createContainer", "path": "/x"}]}"#,
            "createContainer",
        ),
        (
            r#"{"deviceNodes": [{"path": "/dev/not there"}]}"#,
            "not there",
        ),
        (
            r#"{"deviceNodes": [{"path": "/etc/passwd"}]}"#,
            "not a device",
        ),
        (
            r#"{"mounts": [{"hostPath": "/a", "containerPath": "b"}]}"#,
            "absolute",
        ),
        (r#"{"future": 1}"#, "future"),
    ] {
        let error = says(&[&[("v.json", &edit(edits))]], "v/c=d");
        assert!(error.contains(part) && error.contains("v.json"), "{error}");
    }
    let old = edit("{}").replace("1.1.0", "7.0.0");
    assert!(says(&[&[("v.json", &old)]], "v/c=d").contains("cdiVersion"));
}
