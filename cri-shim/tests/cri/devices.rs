//! Devices that vendors' files describe.

use cri_api::v1::*;
use serde_json::json;

use crate::node::{Node, script_config};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cdi_device_is_there_with_all_that_it_brings() {
    let mut node = Node::start().await;
    let dir = node.dir.path().to_owned();
    std::fs::create_dir(dir.join("driver")).unwrap();
    std::fs::write(dir.join("driver/version"), "7\n").unwrap();
    let described = json!({
        "cdiVersion": "0.6.0",
        "kind": "test.example/thing",
        "containerEdits": {"hooks": [
            {"hookName": "startContainer", "path": "/bin/sh", "args": ["sh", "-c", "echo hook ran >/hook"]},
        ]},
        "devices": [{"name": "zero", "containerEdits": {
            "env": ["THING=zero"],
            "deviceNodes": [{"path": "/dev/thing/zero", "hostPath": "/dev/zero", "permissions": "r"}],
            "mounts": [{"hostPath": dir.join("driver"), "containerPath": "/opt/driver", "options": ["ro"]}],
        }}],
    });
    std::fs::create_dir(dir.join("cdi")).unwrap();
    std::fs::write(dir.join("cdi/thing.json"), described.to_string()).unwrap();
    let config = node.sandbox_config("cdi");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let asking = |container: &str, device: &str| {
        let script = "cat /hook; echo $THING; cat /opt/driver/version; \
            head -c 4 /dev/thing/zero | wc -c";
        ContainerConfig {
            cdi_devices: vec![CdiDevice {
                name: device.into(),
            }],
            ..script_config(container, script)
        }
    };
    let error = node
        .create(&sandbox, &config, asking("no", "test.example/thing=one"))
        .await
        .unwrap_err();
    assert!(
        error.message().contains("test.example/thing=one"),
        "{error}"
    );
    let id = node
        .create(&sandbox, &config, asking("yes", "test.example/thing=zero"))
        .await
        .unwrap();
    node.start_container(&id).await.unwrap();
    let ended = node.wait_for_exit(&id).await;
    let log = std::fs::read_to_string(&ended.log_path).unwrap();
    let said: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" stdout "))
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    assert_eq!(said, ["hook ran", "zero", "7", "4"], "{log}");
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}
