"""The small world that the embedded corpus and the instruction set tell about, as tables of facts.

Everything here was written for this project. A table is a block of lines with fields between bars;
the English field stands before the Chinese one. `questions.py` turns the tables into questions,
`make_corpus.py` into stories.
"""

from typing import NamedTuple

VILLAGE = ("Greenhill", "青山村")


class Animal(NamedTuple):
    """An animal: food, home, young and call (empty where there is no word for it)."""

    en: str
    zh: str
    food_en: str
    food_zh: str
    home_en: str
    home_zh: str
    young_en: str = ""
    young_zh: str = ""
    call_en: str = ""
    call_zh: str = ""


class Thing(NamedTuple):
    """A thing of one kind (fruit, vegetable ...) with its usual colour."""

    en: str
    zh: str
    kind_en: str
    kind_zh: str
    colour_en: str
    colour_zh: str


class Job(NamedTuple):
    """A job: what somebody who has it does (`bakes bread`) and where."""

    en: str
    zh: str
    act_en: str
    act_zh: str
    place_en: str
    place_zh: str


class Tool(NamedTuple):
    """A tool and what people do with it (`cut paper`)."""

    en: str
    zh: str
    use_en: str
    use_zh: str


class Person(NamedTuple):
    """Somebody of the village: job, pet, favourite food and the colour of the house."""

    en: str
    zh: str
    job_en: str
    job_zh: str
    pet_en: str
    pet_zh: str
    food_en: str
    food_zh: str
    colour_en: str
    colour_zh: str


class Pair(NamedTuple):
    """Two words, each in both languages: opposites, or a country and its capital."""

    en: str
    zh: str
    other_en: str
    other_zh: str


class Topic(NamedTuple):
    """Something to write a sentence about, and the sentence."""

    en: str
    zh: str
    sentence_en: str
    sentence_zh: str


def _fields(block: str) -> list[list[str]]:
    return [
        [field.strip() for field in line.split("|")] for line in block.splitlines() if line.strip()
    ]


ANIMALS = [
    Animal(*row)
    for row in _fields("""
    cow | 奶牛 | grass | 草 | on a farm | 农场里 | calf | 小牛 | moo | 哞哞
    sheep | 绵羊 | grass | 草 | on a farm | 农场里 | lamb | 羊羔 | baa | 咩咩
    horse | 马 | hay | 干草 | in a stable | 马厩里 | foal | 小马驹 | neigh | 咴咴
    pig | 猪 | corn and roots | 玉米和菜根 | in a sty | 猪圈里 | piglet | 小猪 | oink | 哼哼
    dog | 狗 | meat | 肉 | in a kennel | 狗窝里 | puppy | 小狗 | woof | 汪汪
    cat | 猫 | fish and mice | 鱼和老鼠 | in a house | 屋子里 | kitten | 小猫 | meow | 喵喵
    duck | 鸭子 | water plants | 水草 | by a pond | 池塘边 | duckling | 小鸭 | quack | 嘎嘎
    hen | 母鸡 | grain | 谷子 | in a coop | 鸡舍里 | chick | 小鸡 | cluck | 咯咯
    frog | 青蛙 | flies | 苍蝇 | in a pond | 池塘里 | tadpole | 蝌蚪 | croak | 呱呱
    lion | 狮子 | meat | 肉 | on the plain | 草原上 | cub | 幼狮 | roar | 吼吼
    tiger | 老虎 | meat | 肉 | in the forest | 森林里 | cub | 幼虎
    wolf | 狼 | meat | 肉 | in the forest | 森林里 | pup | 狼崽 | howl | 嗷嗷
    bear | 熊 | honey and berries | 蜂蜜和浆果 | in a cave | 山洞里 | cub | 幼熊
    panda | 熊猫 | bamboo | 竹子 | in the mountains | 大山里 | cub | 幼仔
    monkey | 猴子 | bananas | 香蕉 | in the trees | 树上
    elephant | 大象 | leaves | 树叶 | on the plain | 草原上 | calf | 小象
    rabbit | 兔子 | carrots | 胡萝卜 | in a burrow | 地洞里 | kit | 小兔
    mouse | 老鼠 | cheese | 奶酪 | in a hole | 墙洞里 | pup | 鼠崽 | squeak | 吱吱
    squirrel | 松鼠 | nuts | 坚果 | in the trees | 树上
    goat | 山羊 | leaves | 树叶 | in the mountains | 大山里 | kid | 小羊 | bleat | 咩咩
    camel | 骆驼 | dry plants | 干枯的草 | in the desert | 沙漠里 | calf | 小骆驼
    penguin | 企鹅 | fish | 鱼 | on the ice | 冰上 | chick | 小企鹅
    whale | 鲸鱼 | tiny shrimps | 小虾 | in the sea | 大海里 | calf | 小鲸
    shark | 鲨鱼 | fish | 鱼 | in the sea | 大海里 | pup | 小鲨
    owl | 猫头鹰 | mice | 老鼠 | in a hollow tree | 树洞里 | owlet | 小猫头鹰 | hoot | 咕咕
    bee | 蜜蜂 | nectar | 花蜜 | in a hive | 蜂巢里 | | | buzz | 嗡嗡
    silkworm | 蚕 | mulberry leaves | 桑叶 | in a basket | 竹筐里
    spider | 蜘蛛 | flies | 苍蝇 | in a web | 蛛网上
    snake | 蛇 | mice | 老鼠 | in the grass | 草丛里 | | | hiss | 嘶嘶
    crow | 乌鸦 | seeds and worms | 种子和虫子 | in a nest | 鸟巢里 | chick | 小乌鸦 | caw | 哇哇
    """)
]

THINGS = [
    Thing(*row)
    for row in _fields("""
    banana | 香蕉 | fruit | 水果 | yellow | 黄色
    apple | 苹果 | fruit | 水果 | red | 红色
    orange | 橙子 | fruit | 水果 | orange | 橙色
    lemon | 柠檬 | fruit | 水果 | yellow | 黄色
    cherry | 樱桃 | fruit | 水果 | red | 红色
    plum | 李子 | fruit | 水果 | purple | 紫色
    strawberry | 草莓 | fruit | 水果 | red | 红色
    carrot | 胡萝卜 | vegetable | 蔬菜 | orange | 橙色
    tomato | 西红柿 | vegetable | 蔬菜 | red | 红色
    cucumber | 黄瓜 | vegetable | 蔬菜 | green | 绿色
    cabbage | 白菜 | vegetable | 蔬菜 | green | 绿色
    eggplant | 茄子 | vegetable | 蔬菜 | purple | 紫色
    potato | 土豆 | vegetable | 蔬菜 | brown | 棕色
    rose | 玫瑰 | flower | 花 | red | 红色
    sunflower | 向日葵 | flower | 花 | yellow | 黄色
    violet | 紫罗兰 | flower | 花 | purple | 紫色
    lily | 百合 | flower | 花 | white | 白色
    milk | 牛奶 | drink | 饮料 | white | 白色
    tea | 茶 | drink | 饮料 | green | 绿色
    coffee | 咖啡 | drink | 饮料 | black | 黑色
    """)
]

COLOURS = _fields("""
    sky | 天空 | blue | 蓝色
    sea | 大海 | blue | 蓝色
    snow | 雪 | white | 白色
    cloud | 云 | white | 白色
    grass | 草 | green | 绿色
    sun | 太阳 | yellow | 黄色
    night | 夜晚 | black | 黑色
    coal | 煤 | black | 黑色
    blood | 血 | red | 红色
    sand | 沙子 | yellow | 黄色
    wood | 木头 | brown | 棕色
    """)

JOBS = [
    Job(*row)
    for row in _fields("""
    baker | 面包师 | bakes bread | 烤面包 | in a bakery | 面包店
    farmer | 农民 | grows rice | 种水稻 | in the fields | 田里
    teacher | 老师 | teaches children | 教孩子 | in a school | 学校
    doctor | 医生 | heals sick people | 给人看病 | in a hospital | 医院
    painter | 画家 | paints pictures | 画画 | in a studio | 画室
    fisherman | 渔夫 | catches fish | 打鱼 | on a boat | 船上
    cook | 厨师 | cooks meals | 做饭 | in a kitchen | 厨房
    driver | 司机 | drives the bus | 开公共汽车 | on the road | 路上
    builder | 建筑工人 | builds houses | 盖房子 | on a building site | 工地
    singer | 歌手 | sings songs | 唱歌 | on a stage | 舞台
    postman | 邮递员 | brings letters | 送信 | in a post office | 邮局
    tailor | 裁缝 | makes clothes | 做衣服 | in a workshop | 作坊
    gardener | 园丁 | plants flowers | 种花 | in a garden | 花园
    pilot | 飞行员 | flies planes | 开飞机 | at an airport | 机场
    librarian | 图书管理员 | lends books | 借书给人 | in a library | 图书馆
    barber | 理发师 | cuts hair | 剪头发 | in a barber shop | 理发店
    """)
]

TOOLS = [
    Tool(*row)
    for row in _fields("""
    a pen | 笔 | write | 写字
    a knife | 刀 | cut bread | 切面包
    scissors | 剪刀 | cut paper | 剪纸
    a broom | 扫帚 | sweep the floor | 扫地
    a key | 钥匙 | open a door | 开门
    an umbrella | 雨伞 | keep off the rain | 挡雨
    a spoon | 勺子 | eat soup | 喝汤
    chopsticks | 筷子 | eat noodles | 吃面条
    a hammer | 锤子 | hit nails | 钉钉子
    a needle | 针 | sew clothes | 缝衣服
    a clock | 钟 | tell the time | 看时间
    a lamp | 灯 | light the room | 照亮房间
    soap | 肥皂 | wash hands | 洗手
    a toothbrush | 牙刷 | clean teeth | 刷牙
    a kettle | 水壶 | boil water | 烧水
    a ladder | 梯子 | climb a wall | 爬墙
    """)
]

SENSES = _fields("""
    eyes | 眼睛 | see | 看东西
    ears | 耳朵 | hear | 听声音
    noses | 鼻子 | smell | 闻味道
    teeth | 牙齿 | chew | 嚼东西
    legs | 腿 | walk | 走路
    hands | 手 | hold things | 拿东西
    """)

PEOPLE = [
    Person(*row)
    for row in _fields("""
    Anna | 安娜 | baker | 面包师 | cat | 猫 | noodles | 面条 | yellow | 黄色
    Tom | 汤姆 | farmer | 农民 | dog | 狗 | potatoes | 土豆 | red | 红色
    Mei | 小梅 | teacher | 老师 | rabbit | 兔子 | dumplings | 饺子 | white | 白色
    Wei | 小伟 | doctor | 医生 | horse | 马 | rice | 米饭 | blue | 蓝色
    Rosa | 罗莎 | cook | 厨师 | duck | 鸭子 | soup | 汤 | green | 绿色
    Otto | 奥托 | driver | 司机 | goat | 山羊 | cake | 蛋糕 | brown | 棕色
    Ida | 艾达 | singer | 歌手 | crow | 乌鸦 | cherries | 樱桃 | purple | 紫色
    Hugo | 雨果 | postman | 邮递员 | pig | 猪 | cheese | 奶酪 | orange | 橙色
    Lin | 小林 | painter | 画家 | frog | 青蛙 | eggs | 鸡蛋 | black | 黑色
    Ben | 阿本 | fisherman | 渔夫 | hen | 母鸡 | fish | 鱼 | grey | 灰色
    """)
]

OPPOSITES = [
    Pair(*row)
    for row in _fields("""
    hot | 热 | cold | 冷
    big | 大 | small | 小
    high | 高 | low | 低
    long | 长 | short | 短
    fast | 快 | slow | 慢
    old | 旧 | new | 新
    good | 好 | bad | 坏
    open | 开 | closed | 关
    happy | 高兴 | sad | 难过
    full | 饱 | hungry | 饿
    wet | 湿 | dry | 干
    clean | 干净 | dirty | 脏
    light | 轻 | heavy | 重
    strong | 强 | weak | 弱
    rich | 富 | poor | 穷
    early | 早 | late | 晚
    near | 近 | far | 远
    hard | 硬 | soft | 软
    thick | 厚 | thin | 薄
    deep | 深 | shallow | 浅
    loud | 吵闹 | quiet | 安静
    up | 上 | down | 下
    left | 左 | right | 右
    inside | 里面 | outside | 外面
    day | 白天 | night | 黑夜
    bright | 明亮 | dark | 黑暗
    easy | 容易 | difficult | 困难
    brave | 勇敢 | afraid | 害怕
    """)
]

CAPITALS = [
    Pair(*row)
    for row in _fields("""
    China | 中国 | Beijing | 北京
    France | 法国 | Paris | 巴黎
    Japan | 日本 | Tokyo | 东京
    England | 英国 | London | 伦敦
    Italy | 意大利 | Rome | 罗马
    Spain | 西班牙 | Madrid | 马德里
    Germany | 德国 | Berlin | 柏林
    Russia | 俄罗斯 | Moscow | 莫斯科
    Egypt | 埃及 | Cairo | 开罗
    Greece | 希腊 | Athens | 雅典
    """)
]

DAYS = _fields("""
    Monday | 星期一
    Tuesday | 星期二
    Wednesday | 星期三
    Thursday | 星期四
    Friday | 星期五
    Saturday | 星期六
    Sunday | 星期日
    """)

MONTHS = _fields("""
    January | 一月
    February | 二月
    March | 三月
    April | 四月
    May | 五月
    June | 六月
    July | 七月
    August | 八月
    September | 九月
    October | 十月
    November | 十一月
    December | 十二月
    """)

SEASONS = _fields("""
    spring | 春天 | warm | 暖和 | flowers open | 花儿开放
    summer | 夏天 | hot | 炎热 | children swim in the river | 孩子们在河里游泳
    autumn | 秋天 | cool | 凉爽 | leaves fall from the trees | 树叶从树上落下
    winter | 冬天 | cold | 寒冷 | snow covers the hills | 白雪盖住山坡
    """)

FAMILY = _fields("""
    father's father | grandfather | 爸爸的爸爸 | 爷爷
    father's mother | grandmother | 爸爸的妈妈 | 奶奶
    mother's brother | uncle | 妈妈的兄弟 | 舅舅
    mother's sister | aunt | 妈妈的姐妹 | 姨妈
    uncle's son | cousin | 舅舅的儿子 | 表哥
    father's sister | aunt | 爸爸的姐妹 | 姑姑
    """)

WORDS = _fields("""
    house | 房子
    door | 门
    table | 桌子
    chair | 椅子
    book | 书
    tree | 树
    river | 河
    mountain | 山
    fire | 火
    stone | 石头
    star | 星星
    boat | 船
    train | 火车
    friend | 朋友
    mother | 妈妈
    father | 爸爸
    child | 孩子
    bread | 面包
    egg | 鸡蛋
    rice | 米饭
    water | 水
    road | 路
    bridge | 桥
    school | 学校
    """)

TOPICS = [
    Topic(*row)
    for row in _fields("""
    the sea | 大海 | The sea is wide, and its waves never sleep. | 大海很宽，海浪从不睡觉。
    the rain | 雨 | The rain falls softly on the roof. | 雨轻轻地落在屋顶上。
    the moon | 月亮 | The moon hangs over the hill like a silver lamp. | 月亮像一盏银灯挂在山上。
    the sun | 太阳 | The sun rises early and warms the fields. | 太阳早早升起，晒暖了田野。
    the wind | 风 | The wind plays with the leaves in the yard. | 风在院子里和树叶玩耍。
    the snow | 雪 | The snow makes the whole village white and quiet. | 雪让整个村子又白又安静。
    the forest | 森林 | The forest is green, cool and full of birds. | 森林又绿又凉，到处是小鸟。
    the river | 小河 | The river runs past the mill and sings all day. | 小河流过磨坊，整天唱着歌。
    the garden | 花园 | After the rain the garden smells of roses. | 雨后的花园有玫瑰的香味。
    the market | 集市 | The market is loud and full of fruit. | 集市很热闹，到处是水果。
    the village | 村子 | The village lies between two green hills. | 村子躺在两座青山之间。
    the school | 学校 | The school has a red door and a big yard. | 学校有一扇红门和一个大院子。
    breakfast | 早饭 | Breakfast is warm bread with a cup of milk. | 早饭是热面包和一杯牛奶。
    the night | 夜晚 | The night is dark, but the stars are bright. | 夜晚很黑，可是星星很亮。
    a friend | 朋友 | A friend shares the last apple with you. | 朋友会和你分最后一个苹果。
    music | 音乐 | Music makes tired feet dance again. | 音乐让疲倦的脚又跳起舞来。
    """)
]


def dictionary() -> list[tuple[str, str]]:
    """English and Chinese words for the same thing, each word once."""
    pairs = [(animal.en, animal.zh) for animal in ANIMALS]
    pairs += [(thing.en, thing.zh) for thing in THINGS]
    pairs += [(row[0], row[1]) for row in WORDS]
    return list(dict.fromkeys(pairs))
