//! ImageService as a client sees it.

use cri_api::v1::*;
use serde_json::json;

use crate::node::{IMAGE, Node, image};

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
