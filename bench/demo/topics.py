"""What the demo prompts are about: short sentences, key words and list items, all written for this project.

The key words of a topic occur in its sentences or items; "on topic" is measured with them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One subject with the material that answers about it are built from."""

    name: str
    words: tuple[str, ...]
    items: tuple[str, ...]
    sentences: tuple[str, ...]


def _topic(name: str, words: str, items: str, sentences: str) -> Topic:
    lines = tuple(line.strip() for line in sentences.strip().splitlines())
    return Topic(name, tuple(words.split()), tuple(item.strip() for item in items.split("/")), lines)


TOPICS: tuple[Topic, ...] = (
    _topic(
        "bees",
        "honey hive flowers wings garden queen",
        "warm hive / sweet honey / yellow flowers / thin wings / the queen / a wooden box / fresh wax",
        """Bees carry sweet honey back to the hive.
        The queen never leaves her dark home.
        They visit flowers all morning, even in wind.
        Small wings make a low humming sound.
        A quiet garden is a good place for them.
        In cold months the hive stays closed and warm.""",
    ),
    _topic(
        "the sea",
        "waves salt shore fish boat tide",
        "white waves / grey salt / the shore / a small boat / silver fish / wet sand / high tide",
        """Cold waves roll over the empty shore.
        The tide comes in twice a day.
        A small boat waits near the rocks.
        Fish move in groups under the surface.
        The air tastes of salt, even far from the water.
        Old shells lie on the wet sand.""",
    ),
    _topic(
        "rain",
        "clouds umbrella roof street puddles water",
        "dark clouds / a red umbrella / the roof / deep puddles / clean water / wet shoes / a grey street",
        """Rain falls softly on the tin roof.
        Dark clouds hang over the street.
        Children jump into puddles, laughing loudly.
        My umbrella broke in the strong wind.
        Clean water runs along the road.
        The fields smell fresh when it stops.""",
    ),
    _topic(
        "cats",
        "whiskers milk paws mouse sofa tail",
        "soft paws / long whiskers / a bowl of milk / the sofa / a toy mouse / a striped tail / green eyes",
        """A cat sleeps on the sofa all afternoon.
        Its long tail moves when it is angry.
        They hunt a mouse in total silence.
        Soft paws make no noise on wood.
        The kitten drinks milk, then washes its face.
        Whiskers help them feel in the dark.""",
    ),
    _topic(
        "baking",
        "flour oven butter sugar cake dough",
        "white flour / a hot oven / soft butter / brown sugar / a round cake / sticky dough / two eggs",
        """Mix the flour with cold butter.
        The oven must be hot before you start.
        A cake needs sugar, eggs and patience.
        Leave the dough to rest for an hour.
        The kitchen smells of vanilla and warm bread.
        My aunt bakes every Sunday morning.""",
    ),
    _topic(
        "gardens",
        "roses soil seeds path fence tree",
        "red roses / black soil / tiny seeds / a stone path / a low fence / an apple tree / green leaves",
        """Red roses grow along the fence.
        The soil is dark and full of life.
        We plant seeds in spring, after the frost.
        A narrow path leads to the pond.
        One old tree gives shade in summer.
        Weeds come back faster than you think.""",
    ),
    _topic(
        "the moon",
        "night light sky stars crater silver",
        "the night / pale light / a clear sky / bright stars / a wide crater / silver dust / a long shadow",
        """The moon rises late on summer nights.
        Its silver light falls on the fields.
        Every crater has a name on our maps.
        Stars look weak when the moon is full.
        At night the sky turns deep blue.
        People have walked there, but not for long.""",
    ),
    _topic(
        "trains",
        "station ticket tracks window whistle driver",
        "the station / a paper ticket / steel tracks / a wide window / a loud whistle / the driver / platform nine",
        """The train leaves the station at noon.
        You need a ticket for every seat.
        Long tracks cross the dry plain.
        I watch the hills from the window.
        The driver waves, and the whistle blows.
        Night trains are slow but cheap.""",
    ),
    _topic(
        "libraries",
        "books shelves reader desk quiet page",
        "old books / tall shelves / a young reader / a long desk / a quiet corner / the last page / a small lamp",
        """A library is a quiet place to think.
        The shelves reach up to the ceiling.
        Every reader has a favorite desk.
        Old books smell of dust and glue.
        She turned the page, smiled and read on.
        You can borrow maps and films too.""",
    ),
    _topic(
        "mountains",
        "snow peak valley climb rope stone",
        "deep snow / the peak / a green valley / a steep climb / a strong rope / loose stone / thin air",
        """Snow covers the peak all year.
        The climb takes two days in good weather.
        A river runs through the valley below.
        Bring a rope, warm gloves and water.
        Goats walk over loose stone with ease.
        The air is thin near the top.""",
    ),
    _topic(
        "coffee",
        "cup beans morning bitter milk kitchen",
        "a blue cup / roasted beans / early morning / a bitter taste / warm milk / the kitchen / a silver spoon",
        """I drink one cup every morning.
        Dark beans give a bitter taste.
        Some people add milk, some add sugar.
        The smell fills the whole kitchen.
        Coffee grows on hills in warm countries.
        It is too late for another cup.""",
    ),
    _topic(
        "winter",
        "snow ice coat fire frost scarf",
        "white snow / thin ice / a heavy coat / an open fire / morning frost / a wool scarf / short days",
        """Winter brings short days and long nights.
        Ice covers the lake until March.
        Wear a coat, a hat and a scarf.
        We sit close to the fire and talk.
        Frost paints flowers on the glass.
        Fresh snow makes the town quiet.""",
    ),
    _topic(
        "markets",
        "fruit price stall basket coins crowd",
        "ripe fruit / a fair price / a wooden stall / a full basket / a few coins / the crowd / fresh bread",
        """The market opens before the sun is up.
        Fruit is cheaper at the last stall.
        Ask for the price, then wait a little.
        Her basket was full of green beans.
        A crowd gathers around the fish seller.
        Coins change hands all day long.""",
    ),
    _topic(
        "bicycles",
        "wheels road bell chain helmet hill",
        "two wheels / a flat road / a brass bell / an oily chain / a blue helmet / a steep hill / a soft seat",
        """A bicycle has two wheels and no engine.
        The chain needs oil once a month.
        Wear a helmet, even on short trips.
        Ring the bell before you pass someone.
        Going down the hill is the best part.
        The road to school is flat and safe.""",
    ),
    _topic(
        "birds",
        "nest wings song eggs feathers branch",
        "a round nest / wide wings / a morning song / three eggs / grey feathers / a bare branch / a sharp beak",
        """Birds build a nest from grass and mud.
        Their song wakes me before dawn.
        Three eggs lie under soft feathers.
        A crow sat on the branch, watching us.
        Wide wings let it rest on the wind.
        Many of them fly south in autumn.""",
    ),
    _topic(
        "rivers",
        "bridge water stones boat bank mill",
        "an old bridge / clear water / smooth stones / a narrow boat / the left bank / a mill / a deep pool",
        """The river is slow under the bridge.
        Smooth stones cover the bottom.
        A boat drifts past the old mill.
        We sat on the bank, eating plums.
        Clear water comes from the hills.
        It floods the fields every few years.""",
    ),
    _topic(
        "cooking",
        "salt pan onion soup knife plate",
        "a pinch of salt / an iron pan / one onion / hot soup / a sharp knife / a clean plate / fresh herbs",
        """Cut the onion with a sharp knife.
        Heat the pan before you add oil.
        A little salt makes the soup better.
        Put it on a plate, add herbs and serve.
        Cooking for friends is never a waste.
        Taste everything twice and stay calm.""",
    ),
    _topic(
        "music",
        "piano song drum voice guitar dance",
        "an old piano / a slow song / a loud drum / a clear voice / a guitar / a dance / a quiet note",
        """Music makes long evenings shorter.
        She plays the piano by ear.
        A drum keeps the time for everyone.
        His voice was low, warm and steady.
        They dance when the guitar begins.
        One song can bring back a whole year.""",
    ),
    _topic(
        "schools",
        "teacher lesson pencil bell class chalk",
        "a kind teacher / the first lesson / a short pencil / the bell / a noisy class / white chalk / a map",
        """The teacher writes the date in chalk.
        The first lesson starts at eight.
        He lost his pencil again, of course.
        The bell rings and the hall fills up.
        Our class has a map of the world.
        Some pupils walk two miles every day.""",
    ),
    _topic(
        "horses",
        "field saddle hay rider stable mane",
        "a green field / a leather saddle / dry hay / a young rider / a warm stable / a brown mane / an iron shoe",
        """A brown horse stands in the field.
        The rider cleans the saddle every night.
        They eat hay, oats and apples.
        The stable is warm in winter.
        Its mane moves in the wind.
        Horses can sleep on their feet.""",
    ),
)

# Only for the worked examples that the backbone sees before a prompt; no demo prompt is about them.
SHOT_TOPICS: tuple[Topic, ...] = (
    _topic(
        "dogs",
        "bone park leash ball bark door",
        "a big bone / the park / a red leash / a rubber ball / a loud bark / the door / a warm bed",
        """My dog runs to the door at six.
        A ball is all it needs in the park.
        The leash hangs next to my coat.
        It hid a bone under the bed.
        Dogs bark at the mail, but never at me.""",
    ),
    _topic(
        "clouds",
        "sky storm shape wind sun grey",
        "the sky / a summer storm / an odd shape / the wind / the sun / a grey line / soft edges",
        """Clouds drift slowly over the hills.
        A storm builds up in the west.
        The wind changes their shape all day.
        White edges shine in the sun.
        The sky was grey, then suddenly clear.""",
    ),
    _topic(
        "tea",
        "cup leaves pot lemon steam garden",
        "a thin cup / green leaves / a clay pot / fresh lemon / hot steam / a tea garden / a little honey",
        """Tea tastes best from a thin cup.
        Pour hot water over the leaves.
        Steam rises from the clay pot.
        Add lemon, honey or nothing at all.
        We drink it in the garden at four.""",
    ),
)

FILLERS: tuple[str, ...] = (
    "I hope this helps.",
    "There is more to say about it.",
    "This is what I know.",
    "Please ask me again.",
    "It depends on many things.",
    "That is only one way to see it.",
    "Nobody knows for sure.",
    "You can find out more later.",
    "It was a long day.",
    "I like it very much.",
    "Let me think about it.",
    "The rest is up to you.",
)
