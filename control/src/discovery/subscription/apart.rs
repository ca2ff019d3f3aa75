//! A refused response comes again in parts, until what is refused came alone.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::*;

/// A client that takes what comes before a table that it refuses, and nothing behind it.
struct Client {
    server: Subscription,
    shelf: BTreeMap<Name, Arc<Encoded>>,
    refuses: BTreeSet<Name>,
    has: Vec<(Name, Version)>,
    /// Names in each response.
    responses: Vec<usize>,
    /// Responses that it has not replied to.
    open: VecDeque<(String, Batch)>,
}

fn name(i: usize) -> Name {
    Name::from(format!("table-{i:04}"))
}

impl Client {
    fn of(many: usize, refuses: &[usize]) -> Self {
        let mut client = Self {
            server: Subscription::taking_apart(ResourceType::Route, 10_000),
            shelf: BTreeMap::new(),
            refuses: refuses.iter().map(|i| name(*i)).collect(),
            has: Vec::new(),
            responses: Vec::new(),
            open: VecDeque::new(),
        };
        (0..many).for_each(|i| client.put(i, 1));
        let ask = Ask {
            subscribe: client.shelf.keys().cloned().collect(),
            ..Ask::default()
        };
        client.server.apply(ask, Vec::new).expect("few enough");
        client
    }

    fn put(&mut self, i: usize, content: u8) {
        let value = Bytes::copy_from_slice(&[content]);
        let encoded = Encoded::new(ResourceType::Route, value);
        self.shelf.insert(name(i), Arc::new(encoded));
        self.server.changed(&name(i), Instant::now());
    }

    /// Takes all that it is sent, and replies to none of it.
    fn take(&mut self) {
        while self.server.is_owing() {
            let shelf = &self.shelf;
            let lookup = |name: &Name, _| shelf.get(name).cloned();
            let batch = self.server.take(Phase::Make, usize::MAX, lookup);
            let batch = batch.expect("it is owed something");
            self.responses.push(batch.resources.len());
            let nonce = self.responses.len().to_string();
            self.server.sent(nonce.clone(), String::new(), &batch);
            self.open.push_back((nonce, batch));
        }
    }

    /// Takes all that it is sent before it replies to any of it, until there is nothing more.
    fn settle(&mut self) {
        loop {
            self.take();
            if !self.reply() {
                return;
            }
        }
    }

    /// Replies to the oldest of what it was sent, if there is any.
    fn reply(&mut self) -> bool {
        let Some((nonce, batch)) = self.open.pop_front() else {
            return false;
        };
        let refused = |(name, _): &&(Name, Version)| self.refuses.contains(name);
        let error = batch
            .fresh
            .iter()
            .find(refused)
            .map(|(name, _)| name.to_string());
        let taken = batch.fresh.iter().take_while(|it| !refused(it)).cloned();
        self.has.extend(taken.collect::<Vec<_>>());
        let ask = Ask {
            reply: Some(Reply { nonce, error }),
            ..Ask::default()
        };
        let verdict = self.server.apply(ask, Vec::new).expect("few enough");
        assert_ne!(verdict, Verdict::Stale, "no reply is lost");
        true
    }

    /// Has what is on the shelf and not refused, and the server knows which is which.
    fn check(&self) {
        let shelf = self
            .shelf
            .iter()
            .filter(|(name, _)| !self.refuses.contains(*name));
        let has = |name: &Name, it: &Encoded| self.has.contains(&(name.clone(), it.version));
        let missing = shelf.filter(|(name, it)| !has(name, it));
        assert_eq!(missing.count(), 0);
        let rejected: Vec<_> = self.refuses.iter().map(ToString::to_string).collect();
        assert_eq!(self.server.status().rejected, rejected);
    }
}

#[test]
fn what_is_not_refused_comes_together() {
    let mut client = Client::of(2_000, &[]);
    client.settle();
    client.check();
    assert_eq!(client.responses, [2_000]);
}

#[test]
fn a_refused_one_costs_no_other_and_is_found_in_a_few_parts() {
    for refused in [0, 1_000, 1_999] {
        let mut client = Client::of(2_000, &[refused]);
        client.settle();
        client.check();
        assert!(client.responses.len() < 50, "{:?}", client.responses);
        // What changes later comes together again, and what was refused does not come again by itself.
        let before = client.responses.len();
        (100..200).for_each(|i| client.put(i, 2));
        client.settle();
        client.check();
        assert_eq!(client.responses[before..], [100]);
        // The next version of what was refused comes, and is taken.
        client.refuses.clear();
        client.put(refused, 3);
        client.settle();
        client.check();
    }
}

#[test]
fn many_refused_ones_are_all_found_and_no_reply_is_lost() {
    let refused: Vec<_> = (0..500).step_by(7).collect();
    let mut client = Client::of(500, &refused);
    client.settle();
    client.check();
    let mut all = Client::of(100, &(0..100).collect::<Vec<_>>());
    all.settle();
    all.check();
    assert!(all.has.is_empty());
}

#[test]
fn no_reply_is_lost_however_late_it_comes() {
    let mut client = Client::of(40, &[]);
    client.settle();
    client.refuses.insert(name(20));
    [20, 21].into_iter().for_each(|i| client.put(i, 2));
    client.take();
    for i in 0..20 {
        client.put(i, 2);
        client.take();
    }
    assert!(client.server.is_unsure(), "until there are replies");
    client.settle();
    client.check();
    assert!(!client.server.is_unsure());
}

#[test]
fn parts_of_a_refused_response_wait_for_replies_too() {
    let mut client = Client::of(40, &[]);
    client.settle();
    client.refuses.insert(name(0));
    (0..12).for_each(|i| client.put(i, 2));
    client.take();
    client.reply();
    // Its parts leave, and changes behind them.
    client.take();
    for i in 20..32 {
        client.put(i, 2);
        client.take();
    }
    client.settle();
    client.check();
}
