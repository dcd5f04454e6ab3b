//! Our own service beside CRI's: what `orlop image` does that CRI has no word for.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use cri_api::images::images_server::Images;
use cri_api::images::{
    ExportRequest, ExportResponse, ImageFault, ImportRequest, ImportResponse, ImportedImage, Layer,
    PinRequest, PinResponse, PullRequest, PullResponse, TagRequest, TagResponse, VerifyRequest,
    VerifyResponse,
};
use cri_api::v1::{ImageSpec, PullImageRequest};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::io::{StreamReader, SyncIoBridge};
use tonic::{Request, Response, Status, Streaming};

use super::Error;
use crate::image::Progress;
use crate::runtime::{Runtime, blocking};

/// Archives are sent in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;
/// How often a watcher is told how far a pull is.
const TOLD_EVERY: Duration = Duration::from_millis(100);

impl Runtime {
    /// Imports an archive as it arrives, and makes it outlast a power cut in the background.
    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<ImportResponse, Status> {
        let mut pieces = request.into_inner();
        let first = pieces
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("an import of nothing"))?;
        let name = Some(first.name).filter(|name| !name.is_empty());
        let rest = pieces.map(|piece| {
            piece
                .map(|piece| bytes::Bytes::from(piece.data))
                .map_err(std::io::Error::other)
        });
        let all = tokio_stream::once(Ok(bytes::Bytes::from(first.data))).chain(rest);
        let reader = SyncIoBridge::new(StreamReader::new(all));
        let images = self.images.clone();
        let imported = blocking(move || Ok(images.import(reader, name.as_deref())?)).await?;
        self.settle_images();
        let images = imported.into_iter().map(|image| ImportedImage {
            id: image.id.to_string(),
            names: image.names,
        });
        Ok(ImportResponse {
            images: images.collect(),
        })
    }

    fn layers(&self, progress: &Progress) -> Vec<Layer> {
        let layers = progress.layers(&self.images).into_iter();
        layers
            .map(|layer| Layer {
                digest: layer.blob.to_string(),
                size_bytes: layer.size_bytes,
                received_bytes: layer.received_bytes,
                unpacked: layer.unpacked,
            })
            .collect()
    }

    /// Pulls an image and tells how far it is until it is there. It goes on if nobody listens any more.
    async fn pull_told(
        self: Arc<Self>,
        image: String,
        told: mpsc::Sender<Result<PullResponse, Status>>,
    ) {
        let request = PullImageRequest {
            image: Some(ImageSpec {
                image,
                ..Default::default()
            }),
            ..Default::default()
        };
        let progress = Arc::new(Progress::default());
        let pull = self.pull(request, progress.clone());
        tokio::pin!(pull);
        let mut next = tokio::time::interval(TOLD_EVERY);
        let pulled = loop {
            tokio::select! {
                pulled = &mut pull => break pulled,
                _ = next.tick() => {
                    let layers = self.layers(&progress);
                    // A slow listener misses some.
                    let _ = told.try_send(Ok(PullResponse { id: String::new(), layers }));
                }
            }
        };
        let last = pulled.map(|id| PullResponse {
            id,
            layers: self.layers(&progress),
        });
        let _ = told.send(last).await;
    }
}

/// A writer into a reply's stream.
struct Pieces(mpsc::Sender<Result<ExportResponse, Status>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bytes = bytes.get(..PIECE_BYTES).unwrap_or(bytes);
        let piece = ExportResponse {
            data: bytes.to_vec(),
        };
        self.0
            .blocking_send(Ok(piece))
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `Images` over a shared runtime.
pub struct ImageFiles(pub Arc<Runtime>);

#[tonic::async_trait]
impl Images for ImageFiles {
    async fn import(
        &self,
        request: Request<Streaming<ImportRequest>>,
    ) -> Result<Response<ImportResponse>, Status> {
        self.0.import(request).await.map(Response::new)
    }

    type ExportStream = ReceiverStream<Result<ExportResponse, Status>>;

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let images = request.into_inner().images;
        if images.is_empty() {
            return Err(Status::invalid_argument("an export of no image"));
        }
        let store = self.0.images.clone();
        // What isn't there is an answer of its own, not a stream that breaks.
        for image in &images {
            store.get(image).map_err(Error::from)?;
        }
        let (sender, pieces) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let out = BufWriter::with_capacity(PIECE_BYTES, Pieces(sender.clone()));
            if let Err(error) = store.export(&images, out) {
                let _ = sender.blocking_send(Err(Error::from(error).into()));
            }
        });
        Ok(Response::new(ReceiverStream::new(pieces)))
    }

    type PullStream = ReceiverStream<Result<PullResponse, Status>>;

    async fn pull(
        &self,
        request: Request<PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let (told, progress) = mpsc::channel(4);
        tokio::spawn(self.0.clone().pull_told(request.into_inner().image, told));
        Ok(Response::new(ReceiverStream::new(progress)))
    }

    async fn tag(&self, request: Request<TagRequest>) -> Result<Response<TagResponse>, Status> {
        let TagRequest { image, name } = request.into_inner();
        let store = self.0.images.clone();
        let tagged = blocking(move || Ok(store.tag(&image, &name)?)).await?;
        self.0.settle_images();
        Ok(Response::new(TagResponse {
            names: tagged.names.iter().cloned().collect(),
        }))
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        let PinRequest { image, pinned } = request.into_inner();
        let store = self.0.images.clone();
        blocking(move || Ok(store.pin(&image, pinned)?)).await?;
        self.0.settle_images();
        Ok(Response::new(PinResponse {}))
    }

    async fn verify(&self, _: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        let store = self.0.images.clone();
        let verified = blocking(move || Ok(store.verify())).await?;
        let faults = verified.faults.into_iter();
        Ok(Response::new(VerifyResponse {
            images: verified.images as u64,
            layers: verified.layers as u64,
            unproved: verified.unproved as u64,
            faults: faults
                .map(|(image, why)| ImageFault { image, why })
                .collect(),
        }))
    }
}
