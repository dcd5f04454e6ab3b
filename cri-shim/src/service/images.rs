//! ImageService.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1::{
    FilesystemIdentifier, FilesystemUsage, Image, ImageFilter, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, Int64Value, PullImageRequest, UInt64Value,
};
use serde_json::json;
use tonic::Status;

use super::Error;
use super::stats::disk_usage;
use crate::image::{self, ImageRecord};
use crate::runtime::{Runtime, blocking};
use crate::state::now_ns;

impl Runtime {
    /// CRI ListImages.
    pub fn list_images(&self, filter: Option<ImageFilter>) -> Vec<Image> {
        let asked = filter
            .and_then(|filter| filter.image)
            .map(|image| image.image)
            .unwrap_or_default();
        if asked.is_empty() {
            return self
                .images
                .list()
                .iter()
                .map(|image| to_cri(image))
                .collect();
        }
        self.images
            .get(&asked)
            .iter()
            .map(|image| to_cri(image))
            .collect()
    }

    /// CRI ImageStatus. An image that isn't there is an answer without one, not an error.
    pub fn image_status(&self, request: &ImageStatusRequest) -> Result<ImageStatusResponse, Error> {
        let asked = request.image.clone().unwrap_or_default().image;
        let image = match self.images.get(&asked) {
            Ok(image) => image,
            Err(image::Error::NotFound(_)) => return Ok(ImageStatusResponse::default()),
            Err(error) => return Err(error.into()),
        };
        let mut info = HashMap::new();
        if request.verbose {
            let shown = json!({"imageSpec": image.config, "chainIDs": image.layers});
            info.insert("info".to_owned(), shown.to_string());
        }
        Ok(ImageStatusResponse {
            image: Some(to_cri(&image)),
            info,
        })
    }

    /// CRI PullImage.
    pub async fn pull_image(self: &Arc<Self>, request: PullImageRequest) -> Result<String, Status> {
        self.pull(request, Arc::default()).await
    }

    /// Pulls an image; `progress` tells how far it is.
    pub async fn pull(
        self: &Arc<Self>,
        request: PullImageRequest,
        progress: Arc<image::Progress>,
    ) -> Result<String, Status> {
        let asked = request.image.unwrap_or_default().image;
        let reference = image::Reference::parse(&asked)
            .map_err(|error| Error::from(image::Error::from(error)))?;
        let credentials = image::Credentials::from_cri(request.auth, &reference.domain)
            .map_err(|why| Error::Invalid(format!("pull {reference}: {why}")))?;
        let this = self.clone();
        let pull = async move {
            let begun = std::time::Instant::now();
            let pulled = this.puller.pull(&reference, credentials, &progress).await;
            let (whole, manifest) = (begun.elapsed(), progress.manifest_after());
            let bytes = progress.received_bytes();
            this.metrics.pulled(manifest, whole, bytes, pulled.is_ok());
            let pulled = pulled.map_err(Error::from)?;
            let manifest = manifest.unwrap_or_default();
            tracing::info!(image = %reference, id = %pulled.id, bytes, seconds = whole.as_secs_f64(),
                manifest_seconds = manifest.as_secs_f64(), "pulled");
            this.settle_images();
            Ok(pulled.id.to_string())
        };
        // In a task of its own, as a kubelet that times out will ask again. Layers that two pulls want come once; the
        // pulls themselves aren't joined, since each has its own right to the image.
        let pulled = tokio::spawn(pull).await;
        pulled.map_err(|error| Status::internal(error.to_string()))?
    }

    /// CRI RemoveImage. An image that isn't there is removed.
    pub async fn remove_image(&self, asked: Option<ImageSpec>) -> Result<(), Error> {
        let name = asked.unwrap_or_default().image;
        let images = self.images.clone();
        blocking(move || match images.remove(&name) {
            Err(image::Error::NotFound(_)) => Ok(()),
            other => Ok(other?),
        })
        .await
    }

    /// CRI ImageFsInfo: what the layers take, and what containers have written.
    pub async fn image_fs_info(self: &Arc<Self>) -> Result<ImageFsInfoResponse, Error> {
        let this = self.clone();
        blocking(move || {
            let timestamp = now_ns();
            let mountpoint = this.config.root.display().to_string();
            let usage = |used_bytes: u64, inodes: u64| FilesystemUsage {
                timestamp,
                fs_id: Some(FilesystemIdentifier {
                    mountpoint: mountpoint.clone(),
                }),
                used_bytes: Some(UInt64Value { value: used_bytes }),
                inodes_used: Some(UInt64Value { value: inodes }),
            };
            let images = this.images.usage();
            let (bytes, inodes) = disk_usage(&this.config.root.join("containers"));
            Ok(ImageFsInfoResponse {
                image_filesystems: vec![usage(images.used_bytes, images.inodes)],
                container_filesystems: vec![usage(bytes, inodes)],
            })
        })
        .await
    }

    /// Makes what came into the image store outlast a power cut.
    pub fn settle_images(&self) {
        let images = self.images.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = images.settle() {
                tracing::warn!(%error, "could not sync the image store");
            }
        });
    }
}

/// An image as CRI shows it: its user is a number or a name, as the image says.
fn to_cri(image: &ImageRecord) -> Image {
    let user = image
        .config
        .config
        .user
        .split(':')
        .next()
        .unwrap_or_default();
    let uid = user.parse::<i64>().ok().map(|value| Int64Value { value });
    Image {
        id: image.id.to_string(),
        repo_tags: image.names.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size_bytes,
        username: if uid.is_some() {
            String::new()
        } else {
            user.to_owned()
        },
        uid,
        spec: Some(ImageSpec {
            image: image.id.to_string(),
            ..Default::default()
        }),
        pinned: image.pinned,
    }
}
