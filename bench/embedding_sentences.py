"""Sixty sentences of our own, three on each of twenty subjects: the first two mean nearly the same."""

SUBJECTS = (
    (
        "How do I reset my password?",
        "I forgot my password, how can I set a new one?",
        "Is there a rule for how long a password must be?",
    ),
    (
        "The train to Lisbon leaves at half past six.",
        "At 6:30 the Lisbon train departs.",
        "There is a strike, so no train leaves for Lisbon today.",
    ),
    (
        "def mean(values): return sum(values) / len(values)",
        "Write a Python function that computes the average of a list.",
        "A list in Python can be sorted in place.",
    ),
    (
        "Boil the pasta for nine minutes in salted water.",
        "Cook the noodles nine minutes with salt in the water.",
        "Pasta was eaten in Sicily as early as the twelfth century.",
    ),
    (
        "My package has not arrived yet.",
        "Where is my parcel? It still has not come.",
        "I would like to send the parcel back and get a refund.",
    ),
    (
        "What is the capital of Australia?",
        "Which city is Australia's capital?",
        "How many people live in Sydney?",
    ),
    (
        "The patient takes 40 mg of the drug twice a day.",
        "Forty milligrams of the medicine, morning and evening.",
        "Side effects of this drug are headaches and a dry mouth.",
    ),
    (
        "Extract a tar.gz archive into another folder.",
        "How can I unpack a .tar.gz file somewhere else?",
        "Compress a folder so that it can be mailed.",
    ),
    (
        "Interest rates rose by a quarter of a point on Thursday.",
        "On Thursday the bank raised its rate by 0.25 percent.",
        "Savers have lost money to inflation for three years.",
    ),
    (
        "The cat sleeps on the warm roof of the car.",
        "On top of the warm car a cat is asleep.",
        "Our dog is afraid of thunder.",
    ),
    (
        "Can I cancel my subscription at any time?",
        "Is it possible to end the subscription whenever I want?",
        "What does the yearly subscription cost?",
    ),
    (
        "Light takes about eight minutes from the sun to the earth.",
        "Sunlight needs some eight minutes to reach us.",
        "The moon is moving away from the earth, slowly.",
    ),
    (
        "Translate 'good morning' into Japanese.",
        "What do you say in Japanese for good morning?",
        "Japanese is written with three scripts.",
    ),
    (
        "The server answers with error 503.",
        "I get a 503 from the server.",
        "The server room has to be cooled below 25 degrees.",
    ),
    (
        "She plays the cello in the city's orchestra.",
        "She is a cellist with the municipal orchestra.",
        "The concert hall is being rebuilt until spring.",
    ),
    (
        "Quel temps fera-t-il demain à Lyon ?",
        "Demain, quelle météo à Lyon ?",
        "Lyon est connue pour sa cuisine.",
    ),
    (
        "SELECT name FROM users WHERE age > 30",
        "An SQL query for the names of users older than thirty.",
        "An index makes a database's queries faster.",
    ),
    (
        "Please write a short poem about autumn leaves.",
        "Compose a few verses on leaves in the fall.",
        "Leaves should be raked before the first snow.",
    ),
    (
        "How tall is Mount Kilimanjaro in metres?",
        "What is the height of Kilimanjaro?",
        "Which route up Kilimanjaro is the easiest?",
    ),
    (
        "The contract ends on 31 December unless it is renewed.",
        "Without renewal the agreement expires at the end of the year.",
        "Both parties signed the contract in front of a notary.",
    ),
)

SENTENCES = tuple(sentence for subject in SUBJECTS for sentence in subject)
