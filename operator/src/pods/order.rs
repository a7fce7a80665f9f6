//! Orders to a pod: let devices go, or do not. How a pod follows them is the gateway's matter.

use std::time::Duration;

use crds::status::DrainCause;
use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::load::Load;

/// How long an order may take, waiting for its turn included.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// What a pod is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Order {
    /// `POST /drain`: let devices go. The same again renews it.
    Drain {
        /// Why.
        cause: DrainCause,
        /// Of the leader that orders: a pod refuses orders of earlier ones.
        epoch: i64,
        /// Devices per second; fractions are fine, 0 lets nobody go.
        per_second: f64,
        /// Without renewal the pod pauses after so many seconds.
        lease_seconds: f64,
        /// It stops at so many devices.
        down_to: u64,
        /// It is not ready meanwhile.
        leave: bool,
    },
    /// `POST /undrain`: let nobody go, be ready.
    Undrain {
        /// Of the leader that orders.
        epoch: i64,
    },
}

impl Order {
    pub(super) fn path(&self) -> &'static str {
        match self {
            Self::Drain { .. } => "/drain",
            Self::Undrain { .. } => "/undrain",
        }
    }

    pub(super) fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an order is JSON")
    }
}

/// Why an order was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// Nobody said where this pod is, or it is gone.
    #[error("the pod is not known")]
    Unknown,
    /// Too many orders wait for it.
    #[error("orders before this one wait for the pod")]
    Busy,
    /// It does not answer, or not in time. It may have taken the order.
    #[error("the pod does not answer: {0}")]
    Unreachable(String),
    /// 409: it follows a later leader.
    #[error("the pod follows a later leader: {0}")]
    Fenced(String),
    /// It does not take such an order.
    #[error("the pod refuses the order: {0}")]
    Refused(String),
}

impl OrderError {
    /// For `operator_pod_orders_total`.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Busy => "busy",
            Self::Unreachable(_) => "unreachable",
            Self::Fenced(_) => "fenced",
            Self::Refused(_) => "refused",
        }
    }
}

/// An order on its way to the pod's task.
#[derive(Debug)]
pub(super) struct Posted {
    pub(super) order: Order,
    pub(super) answer: oneshot::Sender<Result<Load, OrderError>>,
}

impl Posted {
    pub(super) async fn post(posts: &mpsc::Sender<Self>, order: Order) -> Result<Load, OrderError> {
        let (answer, answered) = oneshot::channel();
        posts.try_send(Self { order, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => OrderError::Busy,
            mpsc::error::TrySendError::Closed(_) => OrderError::Unknown,
        })?;
        match timeout(ORDER_TIMEOUT, answered).await {
            Ok(Ok(result)) => result,
            // its task was ended
            Ok(Err(_)) => Err(OrderError::Unknown),
            Err(_) => Err(OrderError::Unreachable("no answer in time".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_written_as_the_admin_port_reads_them() {
        let drain = Order::Drain {
            cause: DrainCause::ScaleIn,
            epoch: 3,
            per_second: 2.5,
            lease_seconds: 10.0,
            down_to: 0,
            leave: true,
        };
        let text = r#"{"cause":"ScaleIn","epoch":3,"perSecond":2.5,"leaseSeconds":10.0,"downTo":0,"leave":true}"#;
        assert_eq!((drain.path(), drain.body()), ("/drain", text.as_bytes().to_vec()));
        let undrain = Order::Undrain { epoch: 4 };
        assert_eq!((undrain.path(), undrain.body()), ("/undrain", br#"{"epoch":4}"#.to_vec()));
    }
}
