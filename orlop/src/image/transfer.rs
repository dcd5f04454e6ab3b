//! Images that come from a registry, with bars, and that go to a file.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use cri_api::images::images_client::ImagesClient;
use cri_api::images::{ExportRequest, Layer, PullRequest};

use super::said;
use crate::cri_client::connect;

const BAR_COLUMNS: u128 = 30;

/// Pulls an image and shows how far it is, if a terminal is there to show it on; the image's id.
pub async fn pull(socket: &Path, image: &str) -> anyhow::Result<String> {
    let mut client = ImagesClient::new(connect(socket).await?);
    let request = PullRequest {
        image: image.to_owned(),
    };
    let mut progress = client.pull(request).await.map_err(said)?.into_inner();
    let terminal = io::stderr().is_terminal();
    let mut drawn = 0;
    while let Some(now) = progress.message().await.map_err(said)? {
        if terminal {
            drawn = draw(&now.layers, drawn, &mut io::stderr().lock())?;
        }
        if !now.id.is_empty() {
            return Ok(now.id);
        }
    }
    bail!("the server ended before the image was there")
}

/// Draws a bar for each layer over the lines that were drawn before; how many there are now.
fn draw(layers: &[Layer], before: usize, out: &mut impl Write) -> io::Result<usize> {
    if before > 0 {
        write!(out, "\x1b[{before}A")?;
    }
    for layer in layers {
        writeln!(out, "\x1b[2K{}", line(layer))?;
    }
    out.flush()?;
    Ok(layers.len())
}

fn line(layer: &Layer) -> String {
    let hex = layer.digest.trim_start_matches("sha256:");
    let received = if layer.unpacked {
        layer.size_bytes
    } else {
        layer.received_bytes.min(layer.size_bytes)
    };
    // Sizes are what a manifest says, which may be anything.
    let full = (u128::from(received) * BAR_COLUMNS)
        .checked_div(u128::from(layer.size_bytes))
        .unwrap_or(BAR_COLUMNS);
    let bar: String = (0..BAR_COLUMNS)
        .map(|column| if column < full { '=' } else { ' ' })
        .collect();
    let stage = match (layer.unpacked, received == layer.size_bytes) {
        (true, _) => "done",
        (false, true) => "unpacking",
        (false, false) => "fetching",
    };
    format!(
        "{:<12} [{bar}] {:>7.1} / {:.1} MB {stage}",
        hex.get(..12).unwrap_or(hex),
        received as f64 / 1e6,
        layer.size_bytes as f64 / 1e6
    )
}

/// Writes images to an archive or an OCI layout's folder. An archive takes its name when it is whole.
pub async fn export(
    socket: &Path,
    images: Vec<String>,
    path: &Path,
    layout: bool,
) -> anyhow::Result<()> {
    if layout && path.exists() {
        bail!("it exists already; remove it or choose another name");
    }
    let mut client = ImagesClient::new(connect(socket).await?);
    let request = ExportRequest { images };
    let mut pieces = client.export(request).await.map_err(said)?.into_inner();
    if path == Path::new("-") {
        let mut out = io::stdout().lock();
        while let Some(piece) = pieces.message().await.map_err(said)? {
            out.write_all(&piece.data)?;
        }
        return Ok(out.flush()?);
    }
    let partial = Partial::beside(path)?;
    let mut file = std::fs::File::create(&partial.0)
        .with_context(|| format!("make {}", partial.0.display()))?;
    while let Some(piece) = pieces.message().await.map_err(said)? {
        file.write_all(&piece.data)?;
    }
    if layout {
        tar::Archive::new(std::fs::File::open(&partial.0)?).unpack(path)?;
        // Docker's table of contents is no part of a layout.
        std::fs::remove_file(path.join("manifest.json"))?;
    } else {
        std::fs::rename(&partial.0, path)?;
    }
    Ok(())
}

/// A file on its way, which goes with its owner unless it got its name.
struct Partial(PathBuf);

impl Partial {
    fn beside(path: &Path) -> anyhow::Result<Self> {
        let mut name = path
            .file_name()
            .context("it is not the name of a file")?
            .to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        Ok(Self(path.with_file_name(name)))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Best effort: it isn't there any more when all went well.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_for_each_layer_is_drawn_over_the_last_ones() {
        let layer = |received_bytes, unpacked| Layer {
            digest: "sha256:0123456789abcdef".into(),
            size_bytes: 2_000_000,
            received_bytes,
            unpacked,
        };
        let mut out = Vec::new();
        let layers = [
            layer(1_000_000, false),
            layer(2_000_000, false),
            layer(0, true),
        ];
        assert_eq!(draw(&layers, 2, &mut out).unwrap(), 3);
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("\x1b[2A\x1b[2K0123456789ab [=============== "),
            "{text}"
        );
        assert!(lines[0].ends_with("1.0 / 2.0 MB fetching"), "{text}");
        assert!(
            lines[1].ends_with("unpacking") && lines[2].ends_with("2.0 MB done"),
            "{text}"
        );
    }
}
