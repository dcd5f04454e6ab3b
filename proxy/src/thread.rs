//! A worker on a thread of its own, since it sleeps in the kernel while a transaction is made, and the tasks that feed it.

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A thread that did not start, or that ended of itself.
#[derive(Debug)]
pub(crate) struct Ended;

/// A worker that runs until nobody feeds it any more.
pub(crate) struct Thread<E>(oneshot::Receiver<Result<(), E>>);

impl<E: From<Ended> + Send + 'static> Thread<E> {
    /// Starts it.
    pub fn start(
        name: &str,
        work: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) -> Result<Self, E> {
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || drop(ended.send(work())))
            .map_err(|_| Ended)?;
        Ok(Self(end))
    }

    /// Waits for `shutdown`, ends the tasks that feed the worker, and waits for its end.
    pub async fn run(
        mut self,
        mut feeders: JoinSet<()>,
        shutdown: CancellationToken,
    ) -> Result<(), E> {
        tokio::select! {
            () = shutdown.cancelled() => {}
            result = &mut self.0 => {
                result.map_err(|_| Ended)??;
                return Err(Ended.into());
            }
        }
        // Without senders the worker ends.
        feeders.shutdown().await;
        self.0.await.map_err(|_| Ended)?
    }
}
