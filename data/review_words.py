"""The words that the embedded reviews are made of: what is judged, how, and in what phrases.

Everything here was written for this project. `make_sentiment.py` puts the words together. Within a
list the first words are the common ones, the last the rare ones.
"""

from typing import NamedTuple


class Aspect(NamedTuple):
    """One side of a thing, and the adjectives that praise or blame it."""

    noun: str
    good: list[str]
    bad: list[str]


class Domain(NamedTuple):
    """A kind of thing that people review.

    Attributes:
        aspects: What is judged with an adjective.
        praise: Whole clauses that praise.
        blame: Whole clauses that blame.
        openings: How it came about; says nothing about the quality.
    """

    aspects: list[Aspect]
    praise: list[str]
    blame: list[str]
    openings: list[str]


class Turns(NamedTuple):
    """Turns of phrase of one verdict: `n` is an aspect, `w` an adjective, `y` a whole clause.

    Attributes:
        plain: Say the adjective of this verdict.
        denial: Deny an adjective of the other verdict.
        hearsay: What was expected, an adjective of the other verdict; then what was found, `y`.
        concession: What speaks for the other verdict, and `y`, which decides.
        endings: Last words.
    """

    plain: tuple[str, ...]
    denial: tuple[str, ...]
    hearsay: tuple[str, ...]
    concession: tuple[str, ...]
    endings: list[str]


def _words(block: str) -> list[str]:
    return block.split()


def _domain(aspects: str, praise: str, blame: str, openings: str) -> Domain:
    rows = [line.split("|") for line in aspects.splitlines() if line.strip()]
    return Domain(
        [Aspect(noun.strip(), _words(good), _words(bad)) for noun, good, bad in rows],
        _words(praise),
        _words(blame),
        _words(openings),
    )


# What praises one thing blames another: a big bed, but a big noise; a thin laptop, but a thin coat.
DOMAINS = {
    "hotel": _domain(
        """
        房间 | 干净 宽敞 舒服 温馨 明亮 | 小 旧 潮湿 暗 闷
        床 | 舒服 大 软 平整 | 硬 窄 旧 短
        服务 | 好 周到 热情 贴心 细致 | 差 冷淡 慢 敷衍
        早餐 | 丰富 好吃 新鲜 可口 | 单调 难吃 凉 油腻
        隔音 | 好 理想 | 差 糟糕
        位置 | 好 方便 安静 | 偏 难找 吵
        价格 | 实惠 公道 便宜 划算 | 贵 高 离谱
        噪音 | 小 少 低 | 大 多 吓人
        """,
        """
        前台还帮我们提行李 窗外就是江景 睡得特别香 退房时还送了水果 被子有阳光的味道
        孩子住得不肯走 出门就是地铁口 像回到家一样 半夜要开水也马上送来 服务员笑脸相迎
        """,
        """
        被子有一股霉味 半夜被隔壁吵醒 热水等了半小时 马桶一直漏水 地毯上全是烟洞
        前台爱理不理 空调响了一夜 床单上还有头发 押金拖了三天才退 电梯坏了没人修
        """,
        """
        出差住了一晚 周末带孩子住的 在网上订的 朋友介绍的酒店 国庆住了两晚 提前一个月订的房
        """,
    ),
    "book": _domain(
        """
        内容 | 丰富 充实 有趣 新颖 深刻 | 空洞 乏味 浅 陈旧 重复
        故事 | 感人 精彩 曲折 温暖 | 老套 平淡 拖沓 假
        文字 | 优美 流畅 细腻 朴实 | 生硬 啰嗦 晦涩 粗糙
        翻译 | 流畅 准确 地道 | 生硬 糟糕 差
        纸张 | 好 厚 光滑 | 差 薄 黄 粗糙
        印刷 | 清晰 精美 | 模糊 差 粗糙
        插图 | 漂亮 精美 多 | 少 模糊 难看
        错字 | 少 | 多
        """,
        """
        一口气读到天亮 让人想了很久 孩子天天缠着我讲 读完又读了一遍 每一章都有收获
        合上书还在回味 句句说到心里 读着读着就笑出声 买来送人很体面 书架上终于多了一本好书
        """,
        """
        翻了几页就放下了 看得直打瞌睡 通篇都是废话 掉页掉得厉害 看完什么也没记住
        拿来垫桌脚正好 东拼西凑的东西 书角都压烂了 越往后越看不下去 作者自己大概也没读懂
        """,
        """
        看了书评才买的 给孩子买的 老师推荐的书 等了一周才到货 在书店翻过才买的 图书馆借过一次
        """,
    ),
    "computer": _domain(
        """
        速度 | 快 稳定 理想 | 慢 糟糕
        屏幕 | 清晰 大 亮 细腻 | 小 暗 模糊 刺眼
        键盘 | 舒服 灵敏 安静 | 硬 松 吵 别扭
        外观 | 漂亮 大气 时尚 精致 | 土 难看 笨重 普通
        电池 | 耐用 持久 | 差 糟糕
        散热 | 好 快 理想 | 差 慢 糟糕
        机身 | 轻 薄 结实 小巧 | 重 厚 烫 单薄
        风扇声 | 小 轻 低 | 大 响 吵
        售后 | 好 耐心 及时 | 差 慢 敷衍
        """,
        """
        开机只要几秒 用了半年没死过机 玩大型游戏也不卡 带着出差毫无负担 同事看了都想买
        插上就能用 一天不充电也够 做工挑不出毛病 画图毫不费力 连父母都会用
        """,
        """
        用了三天就蓝屏 动不动就死机 开机要等两分钟 键帽掉了一个 充电器烫得吓人
        屏幕上有一个亮点 半小时就没电了 预装了一堆垃圾软件 修了三次还是老样子 客服只会让我重启
        """,
        """
        上班用的 给女儿上学买的 用了两个月 双十一买的 换下了用了五年的旧电脑 买来写论文的
        """,
    ),
    "restaurant": _domain(
        """
        味道 | 好 鲜 地道 正宗 浓郁 | 淡 怪 咸 差 腻
        分量 | 足 大 实在 | 少 小 可怜
        环境 | 优雅 干净 安静 舒服 | 脏 吵 乱 拥挤
        上菜 | 快 及时 | 慢 拖拉
        服务员 | 热情 勤快 周到 | 冷淡 懒 粗鲁
        价格 | 实惠 公道 便宜 亲民 | 贵 高 离谱
        鱼 | 新鲜 嫩 鲜美 | 腥 老 咸
        排队时间 | 短 | 长 吓人
        """,
        """
        连汤都喝光了 一家人吃得很开心 老板还多送了一盘饺子 吃出了小时候的味道 隔着一条街都闻得到香
        盘子被我们一扫而空 肉一夹就散 光是米饭就吃了三碗 老人孩子都爱吃 第二天又来了一次
        """,
        """
        菜里吃出一根头发 等了一小时才上菜 肉咬都咬不动 回家就拉肚子 剩了一大半没动
        碗边还有油渍 酒水比菜还贵 叫了三遍没人应 端上来已经凉了 米饭是夹生的
        """,
        """
        中午和同事去的 路过进去尝尝 公司聚餐订的包间 生日那天去吃的
        排了二十分钟的队 一个人点了两个菜
        """,
    ),
    "film": _domain(
        """
        剧情 | 精彩 紧凑 感人 合理 | 老套 拖沓 混乱 幼稚 假
        演员 | 出色 自然 投入 用心 | 僵硬 浮夸 做作 业余
        画面 | 美 精致 震撼 清晰 | 粗糙 暗 假 难看
        音乐 | 动听 感人 贴切 | 吵 刺耳 单调
        节奏 | 紧凑 明快 流畅 | 慢 乱 拖沓
        对白 | 幽默 自然 机智 | 尴尬 做作 啰嗦
        结局 | 温暖 动人 圆满 有力 | 仓促 牵强 莫名其妙
        漏洞 | 少 | 多 大
        """,
        """
        看完舍不得起身 全场笑声不断 哭湿了两张纸巾 片尾字幕放完才走 两个小时一晃就过去了
        回家又听了一路主题曲 小演员抢尽了风头 想再看第二遍 每个镜头都像一幅画 散场后还聊了一路
        """,
        """
        中途睡着了两次 看到一半就走了 不知道导演想说什么 笑点一个也没有 全靠广告撑着
        预告片就是全部精华 演得像在念书 越看越糊涂 只想快点散场 特效像二十年前做的
        """,
        """
        周末和家人看的 买票前没看简介 首映那天去的 在家里看的 陪女朋友去看的 冲着导演去的
        """,
    ),
    "clothes": _domain(
        """
        料子 | 软 舒服 厚实 透气 柔滑 | 薄 硬 扎人 粗糙 闷
        颜色 | 正 漂亮 鲜亮 耐看 | 暗 土 难看
        做工 | 细致 精细 好 讲究 | 粗糙 差 马虎
        尺码 | 准 合适 标准 | 小 窄 混乱
        款式 | 大方 时尚 新颖 显瘦 | 老气 土 普通 显胖
        发货 | 快 及时 | 慢 拖拉
        客服 | 耐心 热情 专业 | 冷淡 敷衍 慢
        色差 | 小 少 | 大 明显
        """,
        """
        妈妈穿上就不肯脱 洗了几次还像新的 同事都问在哪买的 针脚一根线头都没有 穿上像换了一个人
        已经给妹妹也买了一件 包装得像礼物一样 冬天穿着暖烘烘的 跑步出汗也不粘身 和图片一模一样
        """,
        """
        洗一次就掉色 第一天就开线了 穿两次就起球 袖子一长一短 线头多得数不清
        有一股刺鼻的味道 拉链拉到一半就卡住 缩水缩得穿不下 收到的像别人退回来的 和图片完全两样
        """,
        """
        给妈妈买的 换季打折买的 第一次在这家买 比平时大一号 按身高选的 穿了一个星期
        """,
    ),
    "trip": _domain(
        """
        风景 | 美 壮观 秀丽 迷人 | 普通 单调 乏味 荒凉
        门票 | 便宜 划算 值 | 贵 高 离谱
        导游 | 热情 幽默 负责 耐心 | 敷衍 冷淡 凶 懒
        空气 | 好 清新 湿润 | 差 浑浊 闷
        路 | 平 好走 宽 | 难走 窄 陡 烂
        游客 | 少 文明 | 多 吵 拥挤
        厕所 | 干净 多 整洁 | 脏 少 臭
        行程 | 轻松 合理 丰富 紧凑 | 累 赶 混乱
        """,
        """
        随手一拍都是明信片 老人孩子都玩得尽兴 站在山顶什么烦恼都没了 日出美得说不出话
        湖水清得看得见鱼 一整天都没走够 连司机师傅都给我们唱山歌 回来以后还常常梦见
        照片洗出来挂在墙上了 村里人请我们喝了茶
        """,
        """
        一路都在逛购物店 除了人头什么也没看到 湖里漂着塑料袋 排了两小时队玩三分钟 一半景点在维修
        一瓶水要二十块 缆车停了也不退钱 垃圾堆在路边没人管 被拉去买了一下午玉石 假古董摆得到处都是
        """,
        """
        五一全家去的 跟团去的 坐了三小时的车 爬了半天的山 听同学说起才去的 带着老人去的
        """,
    ),
    "phone": _domain(
        """
        手感 | 好 舒服 细腻 | 差 滑 重 廉价
        拍照 | 清晰 快 好看 | 模糊 慢 暗
        信号 | 好 强 稳定 | 差 弱
        充电 | 快 方便 | 慢 麻烦 烫
        系统 | 流畅 简洁 稳定 | 卡 乱 慢 臃肿
        声音 | 清楚 大 洪亮 | 小 刺耳 模糊
        耗电 | 少 慢 低 | 快 多 厉害
        广告 | 少 | 多 烦人
        """,
        """
        用到晚上还剩一半电 摔了两次都没事 奶奶拿到手就会用 夜里拍月亮都看得清 换了它再没带过相机
        存了几千张照片也不卡 打开什么都是一瞬间 捧在手里舍不得放下 在地下室也能打电话 戴着手套也能划
        """,
        """
        打电话自己挂断 一升级就变砖 放口袋里都发烫 没摔就碎了屏 指纹十次有八次认不出
        电量掉得像流水 打字比我想的还慢半拍 半夜自己亮屏 耳机孔一边没声音 刚过保修期就坏了
        """,
        """
        给爸爸换的 用了三个星期 排队抢到的 以旧换新买的 从旧手机换过来 拿来当备用机
        """,
    ),
}

GOOD = Turns(
    plain=(
        "{n}很{w}",
        "{n}非常{w}",
        "{n}特别{w}",
        "{n}挺{w}的",
        "{n}比想象中{w}",
        "{n}相当{w}",
        "{n}真{w}",
        "{n}还算{w}",
    ),
    denial=(
        "{n}不{w}",
        "{n}一点也不{w}",
        "{n}并不{w}",
        "{n}没有想象中那么{w}",
        "{n}没有别人说的那么{w}",
    ),
    hearsay=(
        "本以为{n}很{w}，没想到{y}",
        "都说{n}{w}，我却觉得{y}",
        "网上说{n}太{w}，其实{y}",
        "原来担心{n}{w}，结果{y}",
    ),
    concession=(
        "{y}，就是{n}有点{w}",
        "{y}，只是{n}稍微{w}了一点",
        "除了{n}有点{w}，{y}",
        "{n}是有点{w}，可是{y}",
    ),
    endings=_words(
        """
        下次还来 值得推荐 很满意 没有失望 物有所值 推荐给朋友了
        给满分 超出预期 没白花钱 难得 挑不出毛病
        """
    ),
)

BAD = Turns(
    plain=(
        "{n}很{w}",
        "{n}非常{w}",
        "{n}特别{w}",
        "{n}太{w}了",
        "{n}比想象中{w}",
        "{n}相当{w}",
        "{n}真{w}",
        "{n}有点{w}",
    ),
    denial=(
        "{n}不{w}",
        "{n}一点也不{w}",
        "{n}并不{w}",
        "{n}没有想象中那么{w}",
        "{n}没有别人说的那么{w}",
        "{n}不太{w}",
        "{n}谈不上{w}",
    ),
    hearsay=(
        "本以为{n}很{w}，没想到{y}",
        "都说{n}{w}，我却觉得{y}",
        "网上说{n}很{w}，其实{y}",
        "宣传里{n}挺{w}，实际上{y}",
    ),
    concession=(
        "{y}，只有{n}还算{w}",
        "{y}，也就{n}还{w}",
        "除了{n}还算{w}，{y}",
        "{n}是挺{w}，可是{y}",
    ),
    endings=_words(
        """
        再也不来了 不推荐 很失望 后悔了 白花钱 劝大家别上当
        只能给一分 想退货 不值 别信好评 让人寒心
        """
    ),
)

CONTRASTS = (
    "虽然{x}，但是{y}",
    "{x}，不过{y}",
    "{x}，但{y}",
    "尽管{x}，可是{y}",
    "{x}，然而{y}",
)
"""Two judgements; the second, `y`, decides."""
