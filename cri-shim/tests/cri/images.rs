//! ImageService as a client sees it.

use cri_api::images::{ExportRequest, PinRequest, PullRequest, TagRequest};
use cri_api::v1::*;
use serde_json::json;

use crate::node::{IMAGE, Node, image, in_network};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_image_is_listed_found_and_removed() {
    let mut node = Node::start().await;
    let listed = node
        .images
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].repo_tags, [IMAGE]);
    assert!(listed[0].repo_digests[0].starts_with("example.com/test/busybox@sha256:"));
    assert!(listed[0].size > 100_000);
    let ask = |name: &str| ImageStatusRequest {
        image: Some(ImageSpec {
            image: name.into(),
            ..Default::default()
        }),
        verbose: true,
    };
    for name in [IMAGE, &listed[0].id, &listed[0].repo_digests[0]] {
        let found = node
            .images
            .image_status(ask(name))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(found.image.as_ref(), Some(&listed[0]), "{name}");
        assert!(found.info["info"].contains("FROM_IMAGE"));
    }
    assert!(
        node.images
            .image_status(ask("nosuch"))
            .await
            .unwrap()
            .into_inner()
            .image
            .is_none()
    );
    let usage = node
        .images
        .image_fs_info(ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert!(usage.image_filesystems[0].used_bytes.unwrap().value > 100_000);
    let remove = RemoveImageRequest {
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
    };
    node.images.remove_image(remove.clone()).await.unwrap();
    node.images.remove_image(remove).await.unwrap();
    let usage = node
        .images
        .image_fs_info(ImageFsInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(usage.image_filesystems[0].used_bytes.unwrap().value, 0);
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_that_fails_leaves_nothing_and_says_why() {
    let mut node = Node::start().await;
    let error = node
        .import(b"this is no archive".repeat(100), "")
        .await
        .unwrap_err();
    assert!(error.message().contains("archive"), "{error}");
    let mut lying = image("example.com/lying:1", &[vec![0; 1024]], json!({}));
    let at = lying
        .windows(6)
        .position(|bytes| bytes == b"sha256")
        .unwrap();
    lying[at + 600] ^= 1;
    node.import(lying, "").await.unwrap_err();
    let listed = node
        .images
        .list_images(ListImagesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .images;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        std::fs::read_dir(node.dir.path().join("root/images/ingest"))
            .unwrap()
            .count(),
        0
    );
    node.shut_down();
}

/// Debian's registry server, in the node's network. It ends with the test.
struct Registry(std::process::Child);

impl Registry {
    const ADDRESS: &str = "127.0.0.1:5000";

    fn start(node: &Node) -> Registry {
        let dir = node.dir.path().join("registry");
        let config = json!({"version": 0.1, "log": {"level": "error"}, "http": {"addr": Self::ADDRESS},
            "storage": {"filesystem": {"rootdirectory": dir.join("data")}}});
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("config.yml"), config.to_string()).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut serve = std::process::Command::new("docker-registry");
        serve
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let server = in_network(node.dir.path(), || {
            let server = serve.spawn().expect("docker-registry is installed");
            let deadline = std::time::Instant::now() + crate::node::PATIENCE;
            while std::net::TcpStream::connect(Self::ADDRESS).is_err() {
                assert!(
                    std::time::Instant::now() < deadline,
                    "the registry does not answer"
                );
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            server
        });
        Registry(server)
    }

    /// Pushes an OCI archive with a tool of others'.
    fn push(&self, node: &Node, archive: &[u8], name: &str) {
        let file = node.dir.path().join("pushed.tar");
        std::fs::write(&file, archive).unwrap();
        let mut push = std::process::Command::new("skopeo");
        push.args([
            "--insecure-policy",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]);
        push.arg(format!("oci-archive:{}", file.display()))
            .arg(format!("docker://{}/{name}", Self::ADDRESS));
        let pushed = in_network(node.dir.path(), || {
            push.status().expect("skopeo is installed")
        });
        assert!(pushed.success());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_pulled_from_a_registry_and_runs() {
    let mut node = Node::start().await;
    let registry = Registry::start(&node);
    registry.push(&node, &crate::node::busybox_image(), "team/busybox:2");
    let remove = RemoveImageRequest {
        image: Some(ImageSpec {
            image: IMAGE.into(),
            ..Default::default()
        }),
    };
    node.images.remove_image(remove).await.unwrap();
    let name = format!("{}/team/busybox:2", Registry::ADDRESS);
    let pull = |name: &str| PullImageRequest {
        image: Some(ImageSpec {
            image: name.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let pulled = node
        .images
        .pull_image(pull(&name))
        .await
        .unwrap()
        .into_inner()
        .image_ref;
    assert!(pulled.starts_with("sha256:"));
    let config = node.sandbox_config("pulled");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mut container = crate::node::script_config("main", "echo from the registry");
    container.image = Some(ImageSpec {
        image: pulled.clone(),
        user_specified_image: name.clone(),
        ..Default::default()
    });
    let id = node.create(&sandbox, &config, container).await.unwrap();
    node.start_container(&id).await.unwrap();
    let status = node.wait_for_exit(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    assert_eq!(
        (status.image_id, status.image.unwrap().image),
        (pulled, name)
    );
    let missing = node
        .images
        .pull_image(pull(&format!("{}/team/nosuch:1", Registry::ADDRESS)))
        .await
        .unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound, "{missing}");
    node.remove_sandbox(&sandbox).await;
    drop(registry);
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_is_watched_and_its_image_tagged_pinned_and_exported() {
    let mut node = Node::start().await;
    let registry = Registry::start(&node);
    registry.push(&node, &crate::node::busybox_image(), "team/busybox:3");
    let image = format!("{}/team/busybox:3", Registry::ADDRESS);
    let mut files = node.imports.clone();
    let remove = |image: &str| RemoveImageRequest {
        image: Some(ImageSpec {
            image: image.into(),
            ..Default::default()
        }),
    };
    node.images.remove_image(remove(IMAGE)).await.unwrap();
    let request = PullRequest {
        image: image.clone(),
    };
    let mut progress = files.pull(request).await.unwrap().into_inner();
    let mut last = None;
    while let Some(now) = progress.message().await.unwrap() {
        last = Some(now);
    }
    let last = last.unwrap();
    assert!(last.id.starts_with("sha256:"));
    assert!(!last.layers.is_empty());
    for layer in &last.layers {
        assert!(
            layer.unpacked && layer.received_bytes == layer.size_bytes,
            "{layer:?}"
        );
    }
    let request = PullRequest {
        image: format!("{}/team/nosuch:1", Registry::ADDRESS),
    };
    let mut missing = files.pull(request).await.unwrap().into_inner();
    let missing = loop {
        match missing.message().await {
            Ok(Some(_)) => {}
            other => break other.unwrap_err(),
        }
    };
    assert_eq!(missing.code(), tonic::Code::NotFound, "{missing}");
    let request = TagRequest {
        image: last.id.clone(),
        name: "example.com/other:1".into(),
    };
    let names = files.tag(request).await.unwrap().into_inner().names;
    assert!(names.contains(&image) && names.contains(&"example.com/other:1".to_owned()));
    let request = PinRequest {
        image: image.clone(),
        pinned: true,
    };
    files.pin(request).await.unwrap();
    let list = ListImagesRequest::default();
    let listed = node.images.list_images(list).await.unwrap().into_inner();
    assert!(
        listed
            .images
            .iter()
            .any(|one| one.id == last.id && one.pinned)
    );
    let request = |image: &str| ExportRequest {
        images: vec![image.to_owned()],
    };
    let nothing = files.export(request("nosuch")).await.unwrap_err();
    assert_eq!(nothing.code(), tonic::Code::NotFound, "{nothing}");
    let export = files.export(request("example.com/other:1"));
    let mut pieces = export.await.unwrap().into_inner();
    let mut archive = Vec::new();
    while let Some(piece) = pieces.message().await.unwrap() {
        archive.extend(piece.data);
    }
    node.images.remove_image(remove(&last.id)).await.unwrap();
    assert_eq!(node.import(archive, "").await.unwrap(), [last.id]);
    drop(registry);
    node.shut_down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_images_volume_is_writable_in_a_read_only_root() {
    let mut node = Node::start().await;
    let name = "test.local/volumes:1";
    let layer = crate::node::busybox_layer();
    let volumes =
        json!({"Entrypoint": ["/bin/sh"], "Volumes": {"/root": {}, "/new/deep": {}, "/etc": {}}});
    node.import(crate::node::image(name, &[layer], volumes), "")
        .await
        .unwrap();
    let config = node.sandbox_config("volumes");
    let sandbox = node.run_sandbox(&config).await.unwrap();
    let mounted = node.dir.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    for readonly in [true, false] {
        let mut container = crate::node::script_config(&format!("c{readonly}"), "exec sleep 1000");
        container.image = Some(ImageSpec {
            image: name.into(),
            ..Default::default()
        });
        // What the request mounts takes the volume's place.
        container.mounts = vec![cri_api::v1::Mount {
            container_path: "/etc/".into(),
            host_path: mounted.display().to_string(),
            readonly: true,
            ..Default::default()
        }];
        let linux = container.linux.get_or_insert_default();
        linux
            .security_context
            .get_or_insert_default()
            .readonly_rootfs = readonly;
        let id = node.create(&sandbox, &config, container).await.unwrap();
        node.start_container(&id).await.unwrap();
        let script = "echo a >/root/x && echo b >/new/deep/y && read a </root/x && read b </new/deep/y && echo $a $b; \
             (echo c >/tmp/z) 2>/dev/null && echo written; (echo d >/etc/w) 2>/dev/null || echo refused";
        let said = node.exec_text(&id, &["/bin/sh", "-c", script]).await;
        let written = if readonly { "" } else { "written\n" };
        assert_eq!(said, format!("a b\n{written}refused\n"));
    }
    node.remove_sandbox(&sandbox).await;
    node.shut_down();
}
