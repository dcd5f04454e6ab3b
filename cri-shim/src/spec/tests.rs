//! Requests as kubelets send them, and the specifications that they become.

use std::collections::BTreeSet;

use cri_api::v1::{
    Capability, Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, MountPropagation, SupplementalGroupsPolicy,
};

use super::*;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/false\nbad line\n";
const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:50:other,web\nstaff:x:60:web\n";

fn accounts() -> Accounts {
    Accounts {
        passwd: PASSWD.into(),
        group: GROUP.into(),
    }
}

fn with_security(security: LinuxContainerSecurityContext) -> ContainerConfig {
    let linux = LinuxContainerConfig {
        security_context: Some(security),
        ..Default::default()
    };
    ContainerConfig {
        linux: Some(linux),
        ..Default::default()
    }
}

fn build_in(
    config: &ContainerConfig,
    sandbox: &PodSandboxConfig,
    image: &Execution,
) -> Result<Spec, Error> {
    let files = Files {
        resolv_conf: "/s/resolv".into(),
        hostname: "/s/name".into(),
        hosts: "/s/hosts".into(),
    };
    container(Inputs {
        config,
        sandbox,
        image,
        user: &User {
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: "/root".into(),
        },
        files: &files,
        mounts: &config.mounts,
        devices: Vec::new(),
        seccomp: Some(LinuxSeccomp::default()),
        cgroup: "/pod/container",
        unified_cgroups: true,
    })
}

fn build(config: &ContainerConfig) -> Spec {
    build_in(config, &PodSandboxConfig::default(), &image()).unwrap()
}

fn image() -> Execution {
    Execution {
        entrypoint: vec!["/entry".into()],
        cmd: vec!["serve".into()],
        env: vec!["A=image".into(), "B=image".into()],
        working_dir: "/srv".into(),
        ..Execution::default()
    }
}

fn namespaces_in(spec: &Spec) -> BTreeSet<String> {
    let all = spec
        .linux()
        .as_ref()
        .unwrap()
        .namespaces()
        .as_ref()
        .unwrap();
    all.iter()
        .map(|namespace| namespace.typ().to_string())
        .collect()
}

#[test]
fn the_command_is_merged_with_the_images() {
    let args = |command: &[&str], args: &[&str]| {
        let own = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let config = ContainerConfig {
            command: own(command),
            args: own(args),
            ..Default::default()
        };
        build(&config)
            .process()
            .as_ref()
            .unwrap()
            .args()
            .clone()
            .unwrap()
            .join(" ")
    };
    assert_eq!(args(&[], &[]), "/entry serve");
    assert_eq!(args(&[], &["x"]), "/entry x");
    assert_eq!(args(&["/c"], &[]), "/c");
    assert_eq!(args(&["/c"], &["x"]), "/c x");
    let nothing = build_in(
        &ContainerConfig::default(),
        &PodSandboxConfig::default(),
        &Execution::default(),
    );
    assert!(matches!(nothing, Err(Error::NoCommand)));
}

#[test]
fn the_environment_of_the_request_wins() {
    let mut config = ContainerConfig {
        tty: true,
        ..Default::default()
    };
    config.envs = vec![KeyValue {
        key: "A".into(),
        value: b"request".to_vec(),
    }];
    let sandbox = PodSandboxConfig {
        hostname: "pod".into(),
        ..Default::default()
    };
    let spec = build_in(&config, &sandbox, &image()).unwrap();
    let env = spec.process().as_ref().unwrap().env().clone().unwrap();
    for entry in [
        "A=request",
        "B=image",
        "TERM=xterm",
        "HOSTNAME=pod",
        "HOME=/root",
    ] {
        assert!(env.contains(&entry.to_owned()), "{entry}: {env:?}");
    }
    assert_eq!(
        env.iter().filter(|entry| entry.starts_with("A=")).count(),
        1
    );
    assert!(env[0].starts_with("PATH="));
}

#[test]
fn capabilities_are_added_and_dropped_by_name_or_all_at_once() {
    let set = |add: &[&str], drop: &[&str]| {
        let own = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        let capabilities = Capability {
            add_capabilities: own(add),
            drop_capabilities: own(drop),
            ..Default::default()
        };
        capabilities::effective(&LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            ..Default::default()
        })
    };
    assert_eq!(set(&[], &[]).len(), 14);
    assert!(set(&["net_admin"], &[]).contains("NET_ADMIN"));
    assert!(!set(&[], &["CAP_CHOWN"]).contains("CHOWN"));
    assert_eq!(
        set(&["CHOWN"], &["ALL"]),
        BTreeSet::from(["CHOWN".to_owned()])
    );
    let all_but = set(&["ALL"], &["CHOWN"]);
    assert!(all_but.contains("SYS_ADMIN") && !all_but.contains("CHOWN"));
    let config = with_security(LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: vec!["NOPE".into()],
            ..Default::default()
        }),
        ..Default::default()
    });
    let error = build_in(&config, &PodSandboxConfig::default(), &image()).unwrap_err();
    assert!(error.to_string().contains("NOPE"), "{error}");
}

#[test]
fn a_privileged_container_has_everything() {
    let masked = vec!["/proc/kcore".to_owned()];
    let security = LinuxContainerSecurityContext {
        masked_paths: masked.clone(),
        ..Default::default()
    };
    let plain = build(&with_security(security.clone()));
    let plain = plain.linux().as_ref().unwrap();
    assert_eq!(*plain.masked_paths(), Some(masked));
    assert!(plain.seccomp().is_some());
    let privileged = build(&with_security(LinuxContainerSecurityContext {
        privileged: true,
        ..security
    }));
    let linux = privileged.linux().as_ref().unwrap();
    assert!(linux.masked_paths().is_none() && linux.seccomp().is_none());
    assert!(
        linux
            .resources()
            .as_ref()
            .unwrap()
            .devices()
            .as_ref()
            .unwrap()[0]
            .allow()
    );
}

#[test]
fn namespaces_follow_the_pods_options() {
    let spec = build(&ContainerConfig::default());
    let all = ["cgroup", "ipc", "mnt", "net", "pid", "uts"].map(str::to_owned);
    assert_eq!(namespaces_in(&spec), BTreeSet::from(all));
    let node = NamespaceMode::Node as i32;
    let options = NamespaceOption {
        network: node,
        ipc: node,
        pid: node,
        ..Default::default()
    };
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(options.clone()),
        ..Default::default()
    };
    let linux = LinuxPodSandboxConfig {
        security_context: Some(security),
        ..Default::default()
    };
    let sandbox = PodSandboxConfig {
        linux: Some(linux),
        ..Default::default()
    };
    let config = with_security(LinuxContainerSecurityContext {
        namespace_options: Some(options),
        ..Default::default()
    });
    let spec = build_in(&config, &sandbox, &image()).unwrap();
    assert_eq!(
        namespaces_in(&spec),
        BTreeSet::from(["cgroup", "mnt"].map(str::to_owned))
    );
}

#[test]
fn mounts_come_after_their_parents_and_replace_the_usual_ones() {
    let mount = |path: &str| Mount {
        container_path: path.into(),
        host_path: "/h".into(),
        ..Default::default()
    };
    let mut config = ContainerConfig {
        mounts: vec![mount("/a/b/c"), mount("/a"), mount("/etc/hosts/")],
        ..Default::default()
    };
    config.mounts[0].propagation = MountPropagation::PropagationHostToContainer as i32;
    config.mounts[0].readonly = true;
    let spec = build(&config);
    let mounts = spec.mounts().as_ref().unwrap();
    let targets: Vec<String> = mounts
        .iter()
        .map(|mount| mount.destination().display().to_string())
        .collect();
    let at = |path: &str| targets.iter().position(|target| target == path).unwrap();
    assert!(at("/a") < at("/a/b/c"));
    assert_eq!(
        targets
            .iter()
            .filter(|target| *target == "/etc/hosts")
            .count(),
        1
    );
    assert_eq!(
        mounts[at("/a/b/c")].options().as_ref().unwrap(),
        &["rbind", "rslave", "ro"]
    );
    assert_eq!(
        spec.linux()
            .as_ref()
            .unwrap()
            .rootfs_propagation()
            .as_deref(),
        Some("rslave")
    );
    let relative = ContainerConfig {
        mounts: vec![mount("a")],
        ..Default::default()
    };
    assert!(build_in(&relative, &PodSandboxConfig::default(), &image()).is_err());
}

#[test]
fn users_are_found_in_the_images_own_files() {
    let user =
        |security: LinuxContainerSecurityContext, image: &str| accounts().resolve(&security, image);
    let value = |value| Some(Int64Value { value });
    let root = user(Default::default(), "").unwrap();
    assert_eq!((root.uid, root.gid, root.home.as_str()), (0, 0, "/root"));
    let web = user(Default::default(), "web").unwrap();
    assert_eq!(
        web,
        User {
            uid: 33,
            gid: 34,
            groups: vec![34, 50, 60],
            home: "/srv".into()
        }
    );
    assert_eq!(user(Default::default(), "33:logs").unwrap().gid, 50);
    assert_eq!(
        user(Default::default(), "7").unwrap(),
        User {
            uid: 7,
            gid: 0,
            groups: vec![0],
            home: "/".into()
        }
    );
    let named = LinuxContainerSecurityContext {
        run_as_username: "web".into(),
        ..Default::default()
    };
    assert_eq!(user(named, "root").unwrap().uid, 33);
    let full = LinuxContainerSecurityContext {
        run_as_user: value(33),
        run_as_group: value(9),
        supplemental_groups: vec![70, 50],
        ..Default::default()
    };
    assert_eq!(user(full.clone(), "").unwrap().groups, [9, 50, 60, 70]);
    let strict = LinuxContainerSecurityContext {
        supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
        ..full
    };
    assert_eq!(user(strict, "").unwrap().groups, [9, 70, 50]);
    assert_eq!(
        user(Default::default(), "nobody"),
        Err(UserError::NoUser("nobody".into()))
    );
    assert_eq!(
        user(Default::default(), "web:nope"),
        Err(UserError::NoGroup("nope".into()))
    );
    let alone = LinuxContainerSecurityContext {
        run_as_group: value(1),
        ..Default::default()
    };
    assert_eq!(user(alone, "web"), Err(UserError::GroupAlone));
    let wide = LinuxContainerSecurityContext {
        run_as_user: value(-1),
        ..Default::default()
    };
    assert_eq!(user(wide, ""), Err(UserError::Range(-1)));
}

#[test]
fn an_exec_is_the_containers_process_with_another_command() {
    let spec = build(&ContainerConfig::default());
    let container = spec.process().as_ref().unwrap();
    let exec = exec_process(container, &["ls".to_owned()], true).unwrap();
    assert_eq!(exec.args().as_deref(), Some(&["ls".to_owned()][..]));
    assert_eq!(exec.capabilities(), container.capabilities());
    assert!(
        exec.env()
            .as_ref()
            .unwrap()
            .contains(&"TERM=xterm".to_owned())
    );
    assert!(exec_process(container, &[], false).is_err());
}

#[test]
fn zero_limits_leave_the_kernels() {
    let asked = LinuxContainerResources {
        memory_limit_in_bytes: 1 << 20,
        cpu_quota: -1,
        ..Default::default()
    };
    let resources = cgroup_resources(&asked);
    assert_eq!(
        (resources.memory_limit_bytes, resources.cpu_quota_us),
        (Some(1 << 20), Some(-1))
    );
    assert_eq!((resources.cpu_shares, resources.cpuset_cpus), (None, None));
    assert!(resources_are_empty(&LinuxContainerResources::default()));
}
