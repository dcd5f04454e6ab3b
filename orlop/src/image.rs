//! `orlop image`: asks the running CRI server, whose store it is.

mod transfer;

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use cri_api::images::images_client::ImagesClient;
use cri_api::images::{ImportRequest, ImportResponse, PinRequest, TagRequest, VerifyRequest};
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::{ImageSpec, ListImagesRequest, RemoveImageRequest};
use tokio::sync::mpsc;

use crate::cli::{CriServer, Image};
use crate::cri_client::connect;
use crate::layout::Layout;
use crate::up::demo;

/// Archives are sent in pieces of this size.
const PIECE_BYTES: usize = 1 << 20;

/// Runs one of the commands.
pub async fn run(command: Image) -> anyhow::Result<()> {
    match command {
        Image::Import { server, path, name } => {
            let socket = socket(&server)?;
            let names = import(&socket, open(&path)?, name)
                .await
                .with_context(|| format!("import {}", path.display()))?;
            names.iter().for_each(|name| println!("{name}"));
        }
        Image::Demo { server } => import_bytes(&socket(&server)?, demo::image_archive()?)
            .await?
            .iter()
            .for_each(|name| println!("{name}")),
        Image::List { server } => list(&socket(&server)?).await?,
        Image::Pull { server, image } => {
            let id = transfer::pull(&socket(&server)?, &image)
                .await
                .with_context(|| format!("pull {image}"))?;
            println!("{id}");
        }
        Image::Export {
            server,
            path,
            images,
            layout,
        } => transfer::export(&socket(&server)?, images, &path, layout)
            .await
            .with_context(|| format!("export to {}", path.display()))?,
        Image::Tag {
            server,
            image,
            name,
        } => {
            let mut client = ImagesClient::new(connect(&socket(&server)?).await?);
            client
                .tag(TagRequest {
                    image: image.clone(),
                    name,
                })
                .await
                .map_err(said)
                .with_context(|| format!("tag {image}"))?;
        }
        Image::Pin { server, images } => pin(&socket(&server)?, images, true).await?,
        Image::Unpin { server, images } => pin(&socket(&server)?, images, false).await?,
        Image::Verify { server } => verify(&socket(&server)?).await?,
        Image::Remove { server, images } => {
            let mut client = ImageServiceClient::new(connect(&socket(&server)?).await?);
            for image in images {
                let request = RemoveImageRequest {
                    image: Some(spec(&image)),
                };
                client
                    .remove_image(request)
                    .await
                    .map_err(said)
                    .with_context(|| format!("remove {image}"))?;
            }
        }
    }
    Ok(())
}

async fn pin(socket: &Path, images: Vec<String>, pinned: bool) -> anyhow::Result<()> {
    let mut client = ImagesClient::new(connect(socket).await?);
    for image in images {
        let request = PinRequest {
            image: image.clone(),
            pinned,
        };
        client
            .pin(request)
            .await
            .map_err(said)
            .with_context(|| format!("pin {image}"))?;
    }
    Ok(())
}

async fn verify(socket: &Path) -> anyhow::Result<()> {
    let mut client = ImagesClient::new(connect(socket).await?);
    let answer = client.verify(VerifyRequest {}).await.map_err(said)?;
    let found = answer.into_inner();
    for fault in &found.faults {
        println!("{}: {}", fault.image, fault.why);
    }
    let (images, layers) = (found.images, found.layers);
    let unproved = match found.unproved {
        0 => String::new(),
        count => format!(", {count} of them without a way to prove it"),
    };
    println!("{images} images, {layers} layers{unproved}");
    anyhow::ensure!(
        found.faults.is_empty(),
        "remove the images named above, and pull them again"
    );
    Ok(())
}

fn socket(server: &CriServer) -> anyhow::Result<PathBuf> {
    match &server.socket {
        Some(socket) => Ok(socket.clone()),
        None => Ok(Layout::new(&std::path::absolute(&server.root.root)?).cri_socket()),
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..Default::default()
    }
}

/// What the server said, without gRPC's frame around it.
fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

/// A file, standard input, or a folder as an archive of it.
fn open(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    if !path.is_dir() {
        return Ok(Box::new(std::fs::File::open(path)?));
    }
    let (reader, writer) = std::io::pipe()?;
    let folder = path.to_owned();
    std::thread::spawn(move || {
        let mut archive = tar::Builder::new(writer);
        // A failure ends the archive early, which the server refuses.
        let _ = archive
            .append_dir_all(".", folder)
            .and_then(|()| archive.finish());
    });
    Ok(Box::new(reader))
}

/// Imports an archive that is in memory; the names of its images.
pub async fn import_bytes(socket: &Path, archive: Vec<u8>) -> anyhow::Result<Vec<String>> {
    import(socket, std::io::Cursor::new(archive), None).await
}

async fn import(
    socket: &Path,
    mut archive: impl Read + Send + 'static,
    name: Option<String>,
) -> anyhow::Result<Vec<String>> {
    let (sender, pieces) = mpsc::channel::<ImportRequest>(4);
    let mut name = name.unwrap_or_default();
    let reading = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        loop {
            let mut data = Vec::with_capacity(PIECE_BYTES);
            archive
                .by_ref()
                .take(PIECE_BYTES as u64)
                .read_to_end(&mut data)?;
            let last = data.is_empty();
            if last
                || sender
                    .blocking_send(ImportRequest {
                        name: std::mem::take(&mut name),
                        data,
                    })
                    .is_err()
            {
                return Ok(());
            }
        }
    });
    let mut images = ImagesClient::new(connect(socket).await?);
    let pieces = futures::stream::unfold(pieces, async |mut pieces| {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let ImportResponse { images } = images.import(pieces).await.map_err(said)?.into_inner();
    reading.await??;
    Ok(images
        .into_iter()
        .flat_map(|image| {
            if image.names.is_empty() {
                vec![image.id]
            } else {
                image.names
            }
        })
        .collect())
}

async fn list(socket: &Path) -> anyhow::Result<()> {
    let mut client = ImageServiceClient::new(connect(socket).await?);
    let images = client
        .list_images(ListImagesRequest::default())
        .await
        .map_err(said)?
        .into_inner()
        .images;
    println!("{:<50} {:<16} {:>10}", "NAME", "ID", "SIZE");
    for image in images {
        let names = if image.repo_tags.is_empty() {
            vec!["<none>".to_owned()]
        } else {
            image.repo_tags
        };
        let id = image.id.trim_start_matches("sha256:");
        for name in names {
            println!(
                "{name:<50} {:<16} {:>7.1} MB",
                id.get(..12).unwrap_or(id),
                image.size as f64 / 1e6
            );
        }
    }
    Ok(())
}
