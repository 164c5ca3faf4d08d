//! What agents do: conversations of several turns over shared system prompts, with histories that branch, and with nothing
//! that tells a gateway which requests belong together.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use smg_base::{Random, SplitMix};
use smg_mock_worker::token_ids;
use tokio::{task::JoinSet, time::timeout};

use crate::harness::{Ask, Connection, Piece};

/// Longest wait for a whole answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// Tries of one turn, at different nodes.
const TRIES: usize = 4;

/// Tokens of an answer.
const ANSWER_TOKENS: u32 = 16;

/// How much is done.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) conversations: u32,
    pub(crate) turns: u32,
    /// System prompts, of which one in ten is hot: half of the conversations begin with a hot one.
    pub(crate) systems: u32,
    pub(crate) system_tokens: u32,
    /// New tokens of a turn, on average.
    pub(crate) turn_tokens: u32,
    /// Conversations begin within this time.
    pub(crate) spread: Duration,
    /// Between an answer and the next turn, on average.
    pub(crate) pause: Duration,
    pub(crate) form: Form,
    pub(crate) keys: Keys,
    pub(crate) seed: u64,
}

/// What a prompt is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Token ids, as `/v1/completions` takes them.
    Tokens,
    /// Messages of a chat.
    Chat,
}

/// Whether requests say which conversation they belong to, as agents rarely do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    Given,
    Missing,
}

impl Script {
    /// All different tokens: system prompts, and what turns and answers add.
    pub(crate) fn working_set_tokens(&self) -> u64 {
        let own = u64::from(self.turns) * u64::from(self.turn_tokens + ANSWER_TOKENS);
        u64::from(self.systems) * u64::from(self.system_tokens) + u64::from(self.conversations) * own
    }

    /// Requests in all.
    pub(crate) fn requests(&self) -> usize {
        (self.conversations * self.turns) as usize
    }
}

/// The nodes as a load balancer knows them.
#[derive(Clone, Debug)]
pub(crate) struct Doors(Arc<Vec<Door>>);

#[derive(Debug)]
struct Door {
    address: SocketAddr,
    is_open: AtomicBool,
}

impl Doors {
    pub(crate) fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> Self {
        let door = |address| Door { address, is_open: AtomicBool::new(true) };
        Self(Arc::new(addresses.into_iter().map(door).collect()))
    }

    /// Lets the node of this number get requests.
    pub(crate) fn open(&self, number: usize) {
        self.0[number].is_open.store(true, Ordering::Relaxed);
    }

    /// Lets it get none.
    pub(crate) fn close(&self, number: usize) {
        self.0[number].is_open.store(false, Ordering::Relaxed);
    }

    /// An open door.
    fn draw(&self, random: &SplitMix) -> (usize, SocketAddr) {
        let open = |door: &(usize, &Door)| door.1.is_open.load(Ordering::Relaxed);
        let doors: Vec<(usize, &Door)> = self.0.iter().enumerate().filter(open).collect();
        assert!(!doors.is_empty(), "no node is there");
        let (number, door) = doors[usize::try_from(random.below(doors.len() as u64)).unwrap()];
        (number, door.address)
    }
}

/// What became of one turn.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// The id that it carried, at the last try.
    pub(crate) id: String,
    /// That of the turn it goes on from.
    pub(crate) parent: Option<String>,
    /// Tokens that the turn before it left in a cache, system prompt included; none if it is the first.
    pub(crate) inherited: Option<u64>,
    /// How much of that is the system prompt.
    pub(crate) shared: u64,
    pub(crate) first_event: Duration,
    /// Tries that came to nothing, and why the last one did, if it did.
    pub(crate) failures: Vec<String>,
    pub(crate) is_answered: bool,
}

/// A running play.
pub(crate) struct Play {
    tasks: JoinSet<Vec<Turn>>,
}

impl Play {
    /// Starts all conversations of `script`.
    pub(crate) fn start(script: &Script, doors: &Doors) -> Self {
        let random = SplitMix::new(script.seed);
        let mut tasks = JoinSet::new();
        for number in 0..script.conversations {
            let begins = script.spread.mul_f64(random.unit());
            let agent = Agent::new(script, doors, number, SplitMix::new(random.next_u64()));
            tasks.spawn(async move {
                tokio::time::sleep(begins).await;
                agent.talk().await
            });
        }
        Self { tasks }
    }

    /// Waits until all is said.
    pub(crate) async fn finish(self) -> Vec<Turn> {
        self.tasks.join_all().await.concat()
    }
}

/// One conversation.
struct Agent {
    script: Script,
    doors: Doors,
    number: u32,
    random: SplitMix,
    system: History,
}

/// What a turn's prompt is made of.
#[derive(Clone)]
enum History {
    Tokens(Vec<u32>),
    Chat(Vec<Value>),
}

impl Agent {
    fn new(script: &Script, doors: &Doors, number: u32, random: SplitMix) -> Self {
        let hot = (script.systems / 10).max(1);
        let is_hot = number.is_multiple_of(2);
        let system = if is_hot { number / 2 % hot } else { number / 2 % script.systems };
        let seed = SplitMix::new(script.seed ^ (u64::from(system) << 32));
        let system = match script.form {
            Form::Tokens => History::Tokens(ids(&seed, script.system_tokens)),
            Form::Chat => {
                History::Chat(vec![json!({ "role": "system", "content": words(&seed, script.system_tokens) })])
            }
        };
        Self { script: script.clone(), doors: doors.clone(), number, random, system }
    }

    async fn talk(self) -> Vec<Turn> {
        // What each turn left: its prompt, its answer, and their tokens.
        let mut left: Vec<(History, u64, String)> = Vec::new();
        let mut turns = Vec::new();
        for turn in 0..self.script.turns {
            // One turn in six goes back one step, and on from there.
            let back = if turn >= 2 && self.random.below(6) == 0 { 2 } else { 1 };
            let parent = left.len().checked_sub(back).map(|place| left[place].clone());
            let (mut history, parent) = match parent {
                Some((history, tokens, id)) => (history, Some((tokens, id))),
                None => (self.system.clone(), None),
            };
            let fresh =
                self.script.turn_tokens / 2 + u32::try_from(self.random.below(self.script.turn_tokens.into())).unwrap();
            match &mut history {
                History::Tokens(tokens) => tokens.extend(ids(&self.random, fresh)),
                History::Chat(messages) => {
                    messages.push(json!({ "role": "user", "content": words(&self.random, fresh) }));
                }
            }
            let (outcome, text) = self.ask(turn, &history, parent).await;
            let (is_answered, id) = (outcome.is_answered, outcome.id.clone());
            turns.push(outcome);
            if !is_answered {
                break;
            }
            let tokens = match &mut history {
                History::Tokens(tokens) => {
                    tokens.extend(token_ids(&text));
                    tokens.len() as u64
                }
                History::Chat(messages) => {
                    messages.push(json!({ "role": "assistant", "content": text }));
                    messages.iter().map(|message| token_ids(message["content"].as_str().unwrap()).len() as u64).sum()
                }
            };
            left.push((history, tokens, id));
            let pause = self.script.pause.mul_f64(0.5 + self.random.unit());
            tokio::time::sleep(pause).await;
        }
        turns
    }

    /// Says one turn, at another node if one fails; what became of it, and the answer.
    async fn ask(&self, turn: u32, history: &History, parent: Option<(u64, String)>) -> (Turn, String) {
        let (inherited, parent) = parent.unzip();
        let shared = u64::from(self.script.system_tokens);
        let mut failures = Vec::new();
        loop {
            let id = format!("agent-{}-{turn}-{}", self.number, failures.len());
            let (node, address) = self.doors.draw(&self.random);
            let sent = Instant::now();
            let mut request = request(history, &id);
            if self.script.keys == Keys::Given {
                request = request.field("x-smg-routing-key", &format!("agent-{}", self.number));
            }
            let said = timeout(ANSWER_PATIENCE, say(address, &request)).await;
            let why = match said {
                Ok(Ok((first_event, text))) => {
                    let turn = Turn { id, parent, inherited, shared, first_event, failures, is_answered: true };
                    return (turn, text);
                }
                Ok(Err(why)) => format!("node {node}: {why}"),
                Err(_) => format!("node {node}: no answer in time"),
            };
            failures.push(why);
            if failures.len() >= TRIES {
                let first_event = sent.elapsed();
                let turn = Turn { id, parent, inherited, shared, first_event, failures, is_answered: false };
                return (turn, String::new());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn request(history: &History, id: &str) -> Ask {
    let mut body = json!({ "model": "demo", "max_tokens": ANSWER_TOKENS, "stream": true, "ignore_eos": true });
    let path = match history {
        History::Tokens(tokens) => {
            body["prompt"] = json!(tokens);
            "/v1/completions"
        }
        History::Chat(messages) => {
            body["messages"] = json!(messages);
            "/v1/chat/completions"
        }
    };
    Ask::json(path, &body).field("x-request-id", id).field("connection", "close")
}

/// Sends `ask`; how long its first event took, and the text of the answer, or why there is none.
async fn say(address: SocketAddr, ask: &Ask) -> Result<(Duration, String), String> {
    let sent = Instant::now();
    let mut connection = Connection::try_open(address).await.map_err(|error| error.to_string())?;
    if !connection.try_write(&ask.bytes()).await {
        return Err("hung up on".to_owned());
    }
    let head = connection.try_head().await.ok_or("no answer")?;
    let (mut body, mut first) = (Vec::new(), None);
    loop {
        match connection.piece().await {
            Piece::Data(data) => {
                first.get_or_insert_with(|| sent.elapsed());
                body.extend(data);
            }
            Piece::End => break,
            Piece::Broken => return Err("broken off".to_owned()),
        }
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    if head.status != 200 || !body.ends_with("data: [DONE]\n\n") {
        return Err(format!("{}: {}", head.status, body.chars().take(200).collect::<String>()));
    }
    let mut text = String::new();
    for event in crate::harness::events(&body).iter().filter(|event| event.data != "[DONE]") {
        let choice = &event.value()["choices"][0];
        let piece = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
        text.push_str(piece.unwrap_or_default());
    }
    Ok((first.unwrap_or_else(|| sent.elapsed()), text))
}

/// Token ids that stand for two bytes each.
fn ids(random: &SplitMix, count: u32) -> Vec<u32> {
    (0..count).map(|_| 1_000 + u32::try_from(random.below(16_000)).unwrap()).collect()
}

/// Text of `count` tokens.
fn words(random: &SplitMix, count: u32) -> String {
    let letter = || char::from(b'a' + u8::try_from(random.below(26)).unwrap());
    (0..count).flat_map(|_| [' ', letter(), letter(), letter()]).collect()
}
