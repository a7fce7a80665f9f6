//! A real hub, the hub's side of one gateway core in front of it, and devices without MQTT.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    fs,
    future::{Future, poll_fn},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use gateway::{
    metrics::Metrics,
    upstream::{CoreShare, DeviceLink, OutagePace, Upstream, UpstreamEvent, UpstreamSecrets},
};
use gateway_core::{
    auth::{self, Key, Refused, Verdict},
    config::GatewayConfig,
    message::{Command, DeviceId, Outcome, PropertyText, QoS, Telemetry},
    session::effect::{CloseCause, Slot},
    settings::{self, Settings, UpstreamLimits},
    time::UnixSeconds,
};
use hub::{
    Hub, HubConfig,
    domain::{Fault, Kind, Query},
};

/// Longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test as a core of the gateway runs: one thread, one local set.
pub(crate) fn on_a_core(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(3 * PATIENCE, test).await.expect("the test takes too long");
    });
}

/// A hub and how a gateway reaches it.
pub(crate) struct World {
    pub(crate) hub: Option<Hub>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Arc<Metrics>,
    outage_pace: Arc<OutagePace>,
    secrets: PathBuf,
}

/// Who judges devices.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    /// The hub, by each device's token.
    Hub,
    /// The gateway; one policy token opens the connection.
    Local,
}

impl World {
    pub(crate) fn new(verify: Verify) -> Self {
        Self::with(verify, HubConfig::default(), |_| {})
    }

    /// A hub that knows `d1`, the connections of a gateway to it, and `d1` on one of them.
    pub(crate) fn with_device() -> (Self, Upstream, Device) {
        let world = Self::new(Verify::Local);
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        (world, upstream, device)
    }

    /// A hub, and a gateway with limits for impatient tests, changed by `change`.
    pub(crate) fn with(verify: Verify, config: HubConfig, change: impl FnOnce(&mut UpstreamLimits)) -> Self {
        let hub = Hub::start(config).unwrap();
        let secrets = directory();
        write(&secrets, "hub-ca", "ca.crt", hub.ca_pem());
        let policy = hub.policy_connection_string("device").unwrap();
        write(&secrets, "policy", "key", key_of(&policy));
        write(&secrets, "keys", "unused", "");
        let mut settings = settings(verify);
        let settings::Upstream::IotHub(iot_hub) = &mut settings.upstream else { unreachable!() };
        iot_hub.port = hub.addresses().amqps.port();
        iot_hub.limits.request_timeout = Duration::from_secs(3);
        iot_hub.limits.backoff = (Duration::from_millis(20), Duration::from_millis(200));
        change(&mut iot_hub.limits);
        settings.limits.drain_alone_after = Duration::ZERO;
        Self { hub: Some(hub), settings, metrics: Arc::default(), outage_pace: Arc::default(), secrets }
    }

    pub(crate) fn hub(&self) -> &Hub {
        self.hub.as_ref().unwrap()
    }

    /// The gateway takes the hub for a broker: `amqp` is that part of its configuration, without the CA.
    pub(crate) fn use_broker(&mut self, amqp: &str) {
        let yaml = format!(
            "listeners: [{{name: plain, protocol: MQTTPlain, port: 0}}]\n\
             authentication: {{sas: {{verify: Local, deviceKeys: {{secretName: keys}}}}}}\n\
             upstream: {{amqp: {{{amqp}, telemetryAddress: \"devices/{{deviceId}}/messages/events\", \
             commandAddress: \"devices/{{deviceId}}/messages/devicebound\"}}}}\n"
        );
        self.settings = GatewayConfig::parse(&yaml).unwrap().check().unwrap();
    }

    /// Puts a file into the gateway's secrets.
    pub(crate) fn write_secret(&self, secret: &str, file: &str, text: &str) {
        write(&self.secrets, secret, file, text);
    }

    /// The gateway reaches the hub by WebSocket.
    pub(crate) fn use_websocket(&mut self) {
        let port = self.hub().addresses().https.port();
        let settings::Upstream::IotHub(iot_hub) = &mut self.settings.upstream else { unreachable!() };
        (iot_hub.transport, iot_hub.port) = (settings::Transport::AmqpWebSocket, port);
    }

    /// One core more of the same gateway.
    pub(crate) fn upstream(&self) -> Upstream {
        let secrets = Arc::new(UpstreamSecrets::load(&self.settings, &self.secrets).unwrap());
        let share = CoreShare { core: 0, cores: 1 };
        let outage_pace = Arc::clone(&self.outage_pace);
        Upstream::new(Arc::new(self.settings.clone()), secrets, share, outage_pace, Arc::clone(&self.metrics))
    }

    /// A token of the hub policy `device`, good for an hour.
    pub(crate) fn policy_token(&self) -> String {
        let connection_string = self.hub().policy_connection_string("device").unwrap();
        let key = Key::from_base64(key_of(&connection_string).as_bytes()).unwrap();
        auth::sign(&key, "localhost", UnixSeconds(now().0 + 3600), Some("device"))
    }

    /// A token of `device` with its own key, good for an hour.
    pub(crate) fn token(&self, device: &str) -> (String, UnixSeconds) {
        let connection_string = self.hub().connection_string(&hub::domain::Identity::device(device)).unwrap();
        let key = Key::from_base64(key_of(&connection_string).as_bytes()).unwrap();
        let expires = UnixSeconds(now().0 + 3600);
        (auth::sign(&key, &format!("localhost/devices/{device}"), expires, None), expires)
    }

    pub(crate) fn inject(&self, fault: Fault) {
        self.hub().inject(fault);
    }

    /// Message ids that the hub accepted from `device`, in order.
    pub(crate) fn accepted(&self, device: &str) -> Vec<String> {
        let query = Query { device: Some(device), kind: Some(Kind::Telemetry), ..Query::default() };
        let mut entries = self.hub().ledger().entries(&query);
        entries.retain(|entry| entry.outcome == Some(hub::domain::Outcome::Accepted));
        entries.into_iter().map(|entry| entry.message_id.unwrap_or_default().to_string()).collect()
    }

    /// Transfers of telemetry that the hub saw from `device`, whatever became of them.
    pub(crate) fn transfers(&self, device: &str) -> usize {
        let query = Query { device: Some(device), kind: Some(Kind::Telemetry), ..Query::default() };
        self.hub().ledger().entries(&query).len()
    }

    /// Messages to the hub that were counted: accepted of QoS 0 and of QoS 1, not taken of either, and dropped.
    pub(crate) fn counted(&self) -> [u64; 4] {
        let (up, dropped) = (&self.metrics.up, self.metrics.upstream_dropped.get());
        let not_taken = (0..2).flat_map(|qos| (1..4).map(move |column| up.get(qos, column))).sum();
        [up.get(0, 0), up.get(1, 0), not_taken, dropped]
    }

    /// AMQP connections open at the hub.
    pub(crate) fn connections(&self) -> usize {
        self.hub().domain().connections.list().len()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.secrets);
    }
}

pub(crate) fn now() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

fn settings(verify: Verify) -> Settings {
    let authentication = match verify {
        Verify::Hub => "{sas: {verify: Hub}}",
        Verify::Local => "{sas: {verify: Local, deviceKeys: {secretName: keys}}}",
    };
    let policy = match verify {
        Verify::Hub => "",
        Verify::Local => "policy: {name: device, secretName: policy}, ",
    };
    let yaml = format!(
        "listeners: [{{name: plain, protocol: MQTTPlain, port: 0}}]\n\
         authentication: {authentication}\n\
         upstream: {{iotHub: {{hostName: localhost, {policy}caSecretName: hub-ca}}}}\n"
    );
    GatewayConfig::parse(&yaml).unwrap().check().unwrap()
}

fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("gateway-upstream-{}-{n}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn write(directory: &std::path::Path, secret: &str, file: &str, text: &str) {
    fs::create_dir_all(directory.join(secret)).unwrap();
    fs::write(directory.join(secret).join(file), text).unwrap();
}

fn key_of(connection_string: &str) -> &str {
    connection_string.rsplit_once("SharedAccessKey=").unwrap().1
}

/// A device as its session would drive it.
pub(crate) struct Device {
    pub(crate) link: DeviceLink,
    waiting: RefCell<VecDeque<UpstreamEvent>>,
}

impl Device {
    pub(crate) fn open(upstream: &Upstream, id: &str) -> Self {
        Self::try_open(upstream, id).unwrap()
    }

    pub(crate) fn try_open(upstream: &Upstream, id: &str) -> Result<Self, Refused> {
        let link = upstream.open(&DeviceId::new(id, None).unwrap())?;
        Ok(Self { link, waiting: RefCell::default() })
    }

    /// The next event, within patience.
    pub(crate) async fn event(&self) -> UpstreamEvent {
        tokio::time::timeout(PATIENCE, self.next()).await.expect("no event came")
    }

    async fn next(&self) -> UpstreamEvent {
        loop {
            if let Some(event) = self.waiting.borrow_mut().pop_front() {
                return event;
            }
            poll_fn(|cx| self.link.poll_events(cx)).await;
            while let Some(event) = self.link.next_event() {
                self.waiting.borrow_mut().push_back(event);
            }
        }
    }

    /// Nothing comes for this long.
    pub(crate) async fn hears_nothing_for(&self, time: Duration) {
        if let Ok(event) = tokio::time::timeout(time, self.next()).await {
            panic!("unexpected {event:?}");
        }
    }

    pub(crate) fn send(&self, slot: u16, message_id: &str) {
        self.send_sized(slot, message_id, 16);
    }

    pub(crate) fn send_sized(&self, slot: u16, message_id: &str, payload_bytes: usize) {
        self.hand_over((slot, QoS::AtLeastOnce), message_id, payload_bytes);
    }

    pub(crate) fn send_at_most_once(&self, slot: u16, message_id: &str) {
        self.hand_over((slot, QoS::AtMostOnce), message_id, 16);
    }

    fn hand_over(&self, (slot, qos): (u16, QoS), message_id: &str, payload_bytes: usize) {
        let mut text = PropertyText::default();
        text.text.push_str(message_id);
        text.message_id = Some(0..message_id.len() as u32);
        let payload = vec![b'x'; payload_bytes];
        self.link.send(Slot(slot), qos, &Telemetry { text: &text, payload: &payload });
    }

    pub(crate) async fn outcome(&self) -> (u16, Outcome) {
        match self.event().await {
            UpstreamEvent::Outcome(slot, outcome) => (slot.0, outcome),
            other => panic!("expected an outcome, got {other:?}"),
        }
    }

    pub(crate) async fn lost(&self) -> CloseCause {
        loop {
            match self.event().await {
                UpstreamEvent::Lost(cause) => return cause,
                UpstreamEvent::Outcome(..) => {}
                other => panic!("expected the end, got {other:?}"),
            }
        }
    }

    pub(crate) async fn verdict(&self) -> Verdict {
        match self.event().await {
            UpstreamEvent::Authorized(verdict) => verdict,
            other => panic!("expected a verdict, got {other:?}"),
        }
    }

    pub(crate) async fn command(&self) -> Command {
        match self.event().await {
            UpstreamEvent::Command(command) => command,
            other => panic!("expected a command, got {other:?}"),
        }
    }

    pub(crate) async fn open_commands(&self, credit: u32) {
        self.link.open_commands(credit);
        match self.event().await {
            UpstreamEvent::CommandsOpened(Ok(())) => {}
            other => panic!("expected commands to open, got {other:?}"),
        }
    }

    /// Sends `count` messages `{prefix}0`… with at most `window` unsettled, as a session does, until all are accepted.
    /// Every outcome must be `Accepted`, once for each slot.
    pub(crate) async fn send_all(&self, prefix: &str, count: u64, window: u16) {
        let mut free: Vec<u16> = (0..window).collect();
        let mut under_way = BTreeMap::new();
        let mut sent = 0;
        while sent < count || !under_way.is_empty() {
            while sent < count
                && let Some(slot) = free.pop()
            {
                self.send(slot, &format!("{prefix}{sent}"));
                under_way.insert(slot, sent);
                sent += 1;
            }
            let (slot, outcome) = self.outcome().await;
            assert_eq!(outcome, Outcome::Accepted);
            under_way.remove(&slot).expect("one outcome for each slot");
            free.push(slot);
        }
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let patience = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < patience, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
